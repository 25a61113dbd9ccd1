"""Metrics by groups of users."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from seqrec import Recommender, prepare, split_last_two
from seqrec.models import build_model
from seqrec.ranking import metrics, statistics
from seqrec.ranking.groups import ENDS, grouped
from seqrec.ranking.protocols import evaluate, ranks
from seqrec.report.tables import groups_table, table

NAMES = {"history": ["0", "1-4", "5-9", "10-19", "20-49", "50-99", "100+"],
         "popularity": ["0", "1-4", "5-19", "20-99", "100-499", "500+"]}  # fmt: skip


def name_of(by: str, size: int) -> str:
    """The group of a size, by reading the names."""
    for name in NAMES[by]:
        low, _, high = name.rstrip("+").partition("-")
        if int(low) <= size and (name.endswith("+") or size <= int(high or low)):
            return name
    raise AssertionError(size)


@settings(max_examples=100, deadline=None)
@given(
    by=st.sampled_from(sorted(ENDS)),
    sizes=st.lists(st.integers(0, 700), min_size=1, max_size=80),
    seed=st.integers(0, 99),
)
def test_groups_are_the_naive_loop(by, sizes, seed):
    values = np.random.default_rng(seed).random((len(sizes), 2))
    found = grouped(by, np.array(sizes), {"ndcg@10": values[:, 0], "hr@10": values[:, 1]})
    rows: dict[str, list[int]] = {}
    for row, size in enumerate(sizes):
        rows.setdefault(name_of(by, size), []).append(row)
    assert [group.name for group in found] == [name for name in NAMES[by] if name in rows]
    for group in found:
        mine = rows[group.name]
        assert group.users == len(mine)
        for column, name in enumerate(("ndcg@10", "hr@10")):
            assert group.metrics[name] == pytest.approx(np.mean([values[row, column] for row in mine]))
            ends = statistics.gain_intervals(values[mine][:, column : column + 1])[0]
            assert group.intervals[name] == pytest.approx(tuple(ends))
    for name, column in (("ndcg@10", 0), ("hr@10", 1)):  # weighted by users, they make the whole
        total = sum(group.users * group.metrics[name] for group in found)
        assert total / len(sizes) == pytest.approx(values[:, column].mean())


def log() -> pl.DataFrame:
    random = np.random.default_rng(0)
    rows = []
    for user in range(300):
        length = 3 + int(random.geometric(0.1))
        items = np.minimum(random.zipf(1.3, length), 200)
        rows += [(user, int(item), 1000 * step + user) for step, item in enumerate(items)]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


@pytest.mark.parametrize("protocol", ["full", "sampled"])
def test_groups_of_an_evaluation(protocol):
    split = split_last_two(prepare(log()))
    counts = split.train.item_counts()
    made = {
        name: build_model(name, {}, split.train.dataset.num_items, split.train.dataset.num_users)
        for name in ("markov", "popularity")
    }
    for model in made.values():
        model.count(split.train)
    options = {"protocol": protocol, "negatives": 20}
    found = evaluate(
        made["markov"], split.test, train_counts=counts, baselines={"popularity": made["popularity"]}, **options
    )
    for name, scores in (("markov", found), ("popularity", found.baselines["popularity"])):
        greater, ties = ranks(made[name], split.test, **options)
        gains = metrics.ndcg(greater, ties, 10)
        for by, sizes in (("history", split.test.histories.lengths), ("popularity", counts[split.test.items])):
            names = np.array([name_of(by, size) for size in sizes])
            assert {g.name: g.metrics["ndcg@10"] for g in scores.groups[by]} == pytest.approx(
                {group: gains[names == group].mean() for group in set(names)}
            )
            assert sum(group.users for group in scores.groups[by]) == found.users
    assert [g.users for g in found.groups["popularity"] if g.name == "0"] == ([found.cold] if found.cold else [])
    as_json = found.to_dict()["baselines"]["popularity"]["groups"]["history"][0]
    assert as_json["intervals"]["hr@10"] == list(found.baselines["popularity"].groups["history"][0].intervals["hr@10"])


def text_of(shown) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(shown)
    return capture.get()


def joined(shown) -> str:
    """The text without line ends: a title is only as wide as its table."""
    return " ".join(text_of(shown).split())


def test_tables_state_their_protocol():
    recommender = Recommender("markov", split="last-two").fit(log())
    evaluation = recommender.evaluate(seed=3)
    stated = joined(table(evaluation, "markov"))
    assert "test: 300 users, full catalogue, seen items" in stated
    assert (
        "each user's last item, for comparison with papers; trained without validation and test items; seed 3" in stated
    )
    shown = text_of(groups_table(evaluation, "markov"))
    for by, what in (("history", "history"), ("popularity", "target")):
        for group in evaluation.groups[by]:
            row = next(line for line in shown.splitlines() if f"│ {what} {group.name} " in line)
            assert f"{group.users}" in row
            assert f"{group.metrics['ndcg@10']:.4f}" in row
    by_time = Recommender("markov", split="time", valid_from=10_000, test_from=15_000).fit(log())
    assert "each user's first item from 15000 on; trained" in joined(table(by_time.evaluate()))
    assert "each user's first item from 10000 to 15000; trained" in joined(table(by_time.evaluate(split="valid")))
