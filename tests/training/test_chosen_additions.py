"""Transition counts beside a trained model: how they are chosen, and what a fit does with them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from seqrec.data.dataset import Dataset
from seqrec.data.prepare import prepare
from seqrec.data.split import Split, split_last_two
from seqrec.errors import InputError
from seqrec.models.base import Model
from seqrec.models.sasrec import SASRec, SASRecConfig
from seqrec.models.transitions import Addition, Transitions, TransitionsConfig
from seqrec.ranking import metrics
from seqrec.ranking.protocols import ranks
from seqrec.recommender import Recommender
from seqrec.training.additions import VALUES, WEIGHTS, choose_constants, choose_weight, validation_sample

OPTIONS: dict[str, Any] = {"embedding_dim": 8, "num_blocks": 1, "max_length": 6, "epochs": 2, "batch_size": 16,
                           "evaluate_every": 1, "split": "last-two"}  # fmt: skip


def rings(users: int = 60, share: float = 0.8, seed: int = 0) -> pl.DataFrame:
    """A log in which an item mostly leads to the next one of 30, and otherwise to any."""
    random = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        item = int(random.integers(30))
        for step in range(int(random.integers(6, 12))):
            item = (item + 1) % 30 if random.random() < share else int(random.integers(30))
            rows.append((f"u{user}", f"i{item}", user * 100 + step))
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


def noise(users: int = 80) -> pl.DataFrame:
    return rings(users, share=0.0, seed=1)


def fresh(dataset: Dataset) -> SASRec:
    torch.manual_seed(0)
    return SASRec(SASRecConfig(embedding_dim=8, num_blocks=1, max_length=6), dataset.num_items).eval()


def counted(config: TransitionsConfig, split: Split) -> Transitions:
    model = Transitions(config, split.train.dataset.num_items)
    model.count(split.train)
    return model.eval()


def quality(model: Any, split: Split) -> np.ndarray:
    found: np.ndarray = metrics.named("ndcg@10", *ranks(model, split.valid))
    return found


def with_other_test_items(dataset: Dataset) -> Split:
    """The same log, except for the last item of each user."""
    items = dataset.items.copy()
    last = dataset.offsets[1:] - 1
    items[last] = items[last] % dataset.num_items + 1
    other = Dataset(**{**vars(dataset), "items": items})
    return split_last_two(other)


@pytest.mark.parametrize("given", [{}, {"scale": 2.0, "decay": 0.5}, {"neighbours": 0.0, "damping": 0.1}], ids=str)
def test_constants_are_the_best_of_each_in_turn(given: dict[str, Any]) -> None:
    split = split_last_two(prepare(rings()))
    found = choose_constants(TransitionsConfig(**given), split, keep_seen=False, seed=0)
    assert found == choose_constants(TransitionsConfig(**given), split, keep_seen=False, seed=0)
    best = TransitionsConfig(**given).resolved()
    highest = quality(counted(best, split), split).mean()
    for name, values in VALUES.items():
        for value in () if name in given else values:
            asked = TransitionsConfig(**{**vars(best), name: value})
            if asked != best and (mean := quality(counted(asked, split), split).mean()) > highest:
                best, highest = asked, mean
    assert found == best
    assert {name: getattr(found, name) for name in given} == given


def test_near_constants_are_tried_in_turn() -> None:
    """For each, only the next smaller and the next larger value; all values of a constant that is not known."""
    split = split_last_two(prepare(rings()))
    near = {"scale": 7.0, "damping": 0.5, "neighbours": 0.0, "decay": 0.4, "distance": 20, "recency": 1.0}
    beside = {"scale": (5, 10), "damping": (0.25,), "neighbours": (1,), "decay": (0.5,), "distance": (5, 50),
              "recency": (0.3, 3.0), "days": VALUES["days"]}  # fmt: skip
    best = TransitionsConfig(**near).resolved()  # type: ignore[arg-type]
    highest = quality(counted(best, split), split).mean()
    for name in VALUES:
        for value in beside[name]:
            asked = TransitionsConfig(**{**vars(best), name: value})
            if asked != best and (mean := quality(counted(asked, split), split).mean()) > highest:
                best, highest = asked, mean
    assert choose_constants(TransitionsConfig(), split, keep_seen=False, seed=0, near=near) == best
    untimed = split_last_two(prepare(rings().drop("timestamp")))
    found = choose_constants(TransitionsConfig(), untimed, keep_seen=False, seed=0, near=near)
    assert (found.recency, found.days) == (0.0, 7.0)


def test_neither_constants_nor_weight_depend_on_test_items() -> None:
    dataset = prepare(rings())
    split, changed = split_last_two(dataset), with_other_test_items(dataset)
    assert not np.array_equal(split.test.items, changed.test.items)
    found = [choose_constants(TransitionsConfig(), one, keep_seen=False, seed=0) for one in (split, changed)]
    assert found[0] == found[1]
    weights = [choose_weight(fresh(dataset), found[0], one, keep_seen=False, seed=0) for one in (split, changed)]
    assert weights[0] == weights[1]


def summed(model: Model, split: Split, constants: TransitionsConfig, weight: float) -> float:
    model.addition = Addition(counted(constants, split), weight)
    try:
        return float(quality(model, split).mean())
    finally:
        model.addition = None


@pytest.mark.parametrize("recency", [0.0, 0.3])
def test_the_weight_is_the_best_on_validation_items(recency: float) -> None:
    dataset = prepare(rings())
    split, model = split_last_two(dataset), fresh(dataset)
    constants = TransitionsConfig(recency=recency, days=0.01).resolved()
    chosen = choose_weight(model, constants, split, keep_seen=False, seed=0)
    assert model.addition is None
    assert chosen.users == len(split.valid)
    assert chosen.weight > 0
    assert chosen.p < 1e-3
    assert chosen.alone == pytest.approx(quality(model, split).mean())
    tried = (*WEIGHTS, *(2**0.5 * weight for weight in (2**-4, *WEIGHTS)))
    found = {weight: summed(model, split, constants, weight) for weight in tried}
    assert chosen.summed == pytest.approx(found[chosen.weight])
    assert chosen.summed >= max(found[weight] for weight in WEIGHTS)
    around = [weight for weight in found if 0.7 < weight / chosen.weight < 1.5]
    assert len(around) == 3
    assert chosen.summed == pytest.approx(max(found[weight] for weight in around))
    start = 2.5 * chosen.weight  # the next smaller one is nearer to the best
    some = choose_weight(model, constants, split, keep_seen=False, seed=0, near=start)
    smaller, larger = (max(w for w in WEIGHTS if w < start), min((w for w in WEIGHTS if w > start), default=start))
    best = max((smaller, start, larger), key=lambda weight: summed(model, split, constants, weight))
    assert some.weight in (best, best * 2**-0.5, best * 2**0.5)
    assert some.summed >= summed(model, split, constants, best)


def test_no_weight_where_the_counts_are_noise() -> None:
    dataset = prepare(noise())
    split = split_last_two(dataset)
    constants = choose_constants(TransitionsConfig(), split, keep_seen=False, seed=0)
    chosen = choose_weight(fresh(dataset), constants, split, keep_seen=False, seed=0)
    assert chosen.weight == 0
    assert chosen.p >= 0.05
    assert chosen.summed >= chosen.alone > 0


def test_no_weight_without_validation_items() -> None:
    dataset = prepare(rings())
    split = split_last_two(dataset).refit("train+valid")
    assert len(split.valid) == 0
    chosen = choose_weight(fresh(dataset), TransitionsConfig(), split, keep_seen=False, seed=0)
    assert (chosen.weight, chosen.users, chosen.p) == (0, 0, 1)
    assert choose_constants(TransitionsConfig(), split, keep_seen=False, seed=0) == TransitionsConfig().resolved()


def test_a_model_that_fails_keeps_no_counts() -> None:
    dataset = prepare(rings())
    model = fresh(dataset)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(InputError, match="not numbers"):
        choose_weight(model, TransitionsConfig(), split_last_two(dataset), keep_seen=False, seed=0)
    assert model.addition is None


def test_many_users_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = prepare(rings())
    split = split_last_two(dataset)
    monkeypatch.setattr("seqrec.training.additions.MOST_USERS", 20)
    one, same, other = (validation_sample(split, seed) for seed in (0, 0, 1))
    assert len(one) == len(np.unique(one.histories.users)) == 20
    np.testing.assert_array_equal(one.histories.users, same.histories.users)
    assert not np.array_equal(one.histories.users, other.histories.users)
    monkeypatch.setattr("seqrec.training.additions.TESTED_USERS", 40)
    chosen = choose_weight(fresh(dataset), TransitionsConfig(), split, keep_seen=False, seed=0)
    assert (chosen.users, chosen.weight > 0) == (40, True)


# ---- in a fit --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with counts."""
    path = tmp_path_factory.mktemp("added") / "run"
    Recommender("sasrec", **OPTIONS).fit(rings(), path)
    return path


def stated(metrics: dict[str, Any]) -> dict[str, Any]:
    """Metrics without the time that they took."""
    return json.loads(json.dumps(metrics), object_hook=lambda part: {k: v for k, v in part.items() if k != "seconds"})


def test_a_fit_says_what_the_counts_gain(folder: Path) -> None:
    facts = json.loads((folder / "metrics.json").read_text())
    chosen = facts["transitions"]
    assert chosen["weight"] > 0
    assert chosen["validation"]["summed"] > chosen["validation"]["alone"]
    assert chosen["validation"]["p"] < 0.05
    assert chosen["validation"]["users"] == 60
    assert set(chosen["constants"]) == {*VALUES, "distance", "successors"}
    for protocol in ("full", "sampled"):
        test = facts["test"][protocol]
        assert {"sasrec", "transitions", "markov", "popularity"} <= set(test["baselines"])
        assert test["differences"].keys() == test["baselines"].keys()
        alone = test["metrics"]["ndcg@10"] - test["baselines"]["sasrec"]["metrics"]["ndcg@10"]
        assert test["differences"]["sasrec"]["mean"] == pytest.approx(alone)
        assert test["differences"]["sasrec"]["p"] < 0.05


def test_counts_are_off_where_asked(folder: Path, tmp_path: Path) -> None:
    found = Recommender("sasrec", transitions="off", **OPTIONS).fit(rings(), tmp_path / "run")
    assert not (tmp_path / "run/transitions.safetensors").exists()
    assert "transitions" not in found.metrics
    assert found.model.addition is None
    assert "sasrec" not in found.metrics["test"]["full"]["baselines"]
    alone = json.loads((folder / "metrics.json").read_text())["test"]["full"]["baselines"]["sasrec"]
    assert found.metrics["test"]["full"]["metrics"] == pytest.approx(alone["metrics"])
    assert Recommender.load(tmp_path / "run").model.addition is None
    with pytest.raises(InputError, match="transitions"):
        Recommender("sasrec", transitions="on")


def test_counts_that_do_not_help_are_kept_without_a_table(tmp_path: Path) -> None:
    found = Recommender("sasrec", **OPTIONS).fit(noise(), tmp_path / "run")
    assert found.metrics["transitions"]["weight"] == 0
    assert "sasrec" not in found.metrics["test"]["full"]["baselines"]
    again = Recommender.load(tmp_path / "run")
    assert again.model.addition is not None
    assert again.model.addition.weight == 0
    assert len(again.model.addition.transitions.columns) == 0
    assert stated(again.evaluate().to_dict()) == stated(found.metrics["test"]["full"])
    assert again.recommend(k=3).equals(found.recommend(k=3))


def test_a_loaded_run_has_the_same_figures(folder: Path) -> None:
    again = Recommender.load(folder)
    for protocol in ("full", "sampled"):
        assert stated(again.evaluate(protocol).to_dict()) == stated(again.metrics["test"][protocol])  # type: ignore[arg-type]
    assert again.model.addition is not None
    counts = again.model.addition.transitions.counts
    assert int(counts.sum()) == again.dataset.num_interactions  # for recommending, the whole log is counted


def test_a_saved_copy_keeps_the_counts(folder: Path, tmp_path: Path) -> None:
    again = Recommender.load(folder)
    again.save(tmp_path / "copy")
    name = "transitions.safetensors"
    assert (tmp_path / "copy" / name).read_bytes() == (folder / name).read_bytes()
    copied = Recommender.load(tmp_path / "copy")
    assert copied.recommend(k=5).equals(again.recommend(k=5))
    assert stated(copied.evaluate().to_dict()) == stated(again.evaluate().to_dict())
    memory = Recommender("sasrec", **OPTIONS).fit(rings())
    memory.save(tmp_path / "memory")
    assert (tmp_path / "memory" / name).read_bytes() == (folder / name).read_bytes()


def test_a_run_that_was_killed_ends_with_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    steps = iter(range(10**6))

    def killed() -> bool:
        if next(steps) == 5:  # in the second epoch
            raise KeyboardInterrupt
        return False

    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        Recommender("sasrec", **OPTIONS).fit(rings(), run, stop=killed)
    assert not (run / "transitions.safetensors").exists()
    assert Recommender.load(run).model.addition is None
    found = Recommender("sasrec", **OPTIONS).fit(rings(), run, resume=True)
    for name in ("transitions.safetensors", "weights.safetensors"):
        assert (run / name).read_bytes() == (folder / name).read_bytes()
    assert stated(found.metrics) == stated(json.loads((folder / "metrics.json").read_text()))


def test_a_run_killed_in_its_test_has_its_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("seqrec.training.fitting._tested", killed)
        with pytest.raises(KeyboardInterrupt):
            Recommender("sasrec", **OPTIONS).fit(rings(), tmp_path / "run")
    addition = Recommender.load(tmp_path / "run").model.addition
    assert addition is not None
    assert addition.weight > 0


@pytest.mark.parametrize("kind", ["valid", "all"])
def test_a_refit_counts_again(folder: Path, tmp_path: Path, kind: Any) -> None:
    found = Recommender("sasrec", refit=kind, **OPTIONS).fit(rings(), tmp_path / "run")
    name = "transitions.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (folder / name).read_bytes()
    before = json.loads((folder / "metrics.json").read_text())
    assert stated(found.metrics["test"]) == stated(before["test"])
    assert found.metrics["transitions"] == before["transitions"]
    again = Recommender.load(tmp_path / "run")
    assert again.recommend(k=4).equals(found.recommend(k=4))
    if kind == "all":
        with pytest.warns(UserWarning, match="not held out"):
            assert stated(again.evaluate().to_dict()) == stated(before["test"]["full"])
        return
    refitted = found.metrics["refit"]["test"]["full"]
    assert stated(again.evaluate().to_dict()) == stated(refitted)
    assert refitted["trained_on"] == "train+valid"
    # The counts, too, saw the validation items.
    assert (
        refitted["baselines"]["transitions"]["metrics"] != before["test"]["full"]["baselines"]["transitions"]["metrics"]
    )
