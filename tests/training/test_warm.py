"""Warm start: what is taken over from an earlier run, matched by naive loops over ids; what is refused; resuming."""

import copy
import json
import os
import pickle
import re
import shutil
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from seqrec import InputError, Recommender, Run, SASRecConfig, split_last_two
from seqrec.cli.app import main
from seqrec.data.dataset import Dataset
from seqrec.errors import RunWarning
from seqrec.run.layout import START
from seqrec.run.start import row_kinds
from seqrec.run.tensors import read_header
from seqrec.training.additions import VALUES
from seqrec.training.start import DISTANCE, SHRINKAGE
from seqrec.training.warm import STOPS

ITEMS = 15
SMALL: dict[str, Any] = {
    "embedding_dim": 8, "max_length": 6, "batch_size": 8, "epochs": 2, "evaluate_every": 1, "split": "last-two",
    "transitions": "off",
}  # fmt: skip
#: With these, a training changes hardly anything, so that its weights are those that it started from.
STILL: dict[str, Any] = {"learning_rate": 1e-9, "average_decay": 0.0, "epochs": 1, "split": "last-two"}
TRAINED = ["sasrec", "ssept", "gru4rec", "caser", "slirec", "bert4rec", "tisasrec"]
MORE: dict[str, dict[str, Any]] = {
    "gru4rec": {"separate_output": True}, "caser": {"user_dim": 4}, "ssept": {"user_dim": 4},
    "slirec": {"category_dim": 3},
}  # fmt: skip
SCHEMA = ["user_id", "item_id", "timestamp"]


def log(users: int = 30, seed: int = 0, least: int = 5) -> pl.DataFrame:
    """Users who mostly walk round a ring of items, with ids that are words."""
    random = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        start = int(random.integers(ITEMS))
        rows += [(f"u{user}", f"i{(start + n + int(random.integers(2))) % ITEMS}", n)
                 for n in range(int(random.integers(least, 10)))]  # fmt: skip
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def later(users: int = 30) -> pl.DataFrame:
    """The same log, and new items between the old ones, at the front of some histories so that they are trained on."""
    rows = [(f"u{user}", f"i{user % 3}x", -1 - n) for user in range(0, users, 2) for n in range(2)]
    return pl.concat([log(users), pl.DataFrame(rows, schema=SCHEMA, orient="row")])


def items(more: bool) -> pl.DataFrame:
    """Categories, of which another one is the most frequent if there are more items."""
    ids = [f"i{n}" for n in range(ITEMS)] + ["i0x", "i1x", "i2x"] * more
    kinds = ["b"] * 7 + ["c"] * 8 + ["b", "b", "d"] * more
    return pl.DataFrame({"item_id": ids, "category": kinds})


def fitted(name: str, folder: Path, frame: pl.DataFrame, described: bool = False, **options: Any) -> Recommender:
    more = MORE.get(name, {}) | ({"num_blocks": 1} if name in ("sasrec", "ssept", "bert4rec", "tisasrec") else {})
    return Recommender(name, **SMALL | more | options).fit(frame, folder, items=items(False) if described else None)


def same(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


def one_line(action: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An earlier run of sasrec."""
    folder = tmp_path_factory.mktemp("warm") / "earlier"
    fitted("sasrec", folder, log())
    return folder


# ---- what is taken over ----------------------------------------------------------------------------------------------


@pytest.mark.slow_but_one
@pytest.mark.parametrize("name", [*TRAINED, "ensemble", "mixed"])
def test_the_scores_are_those_of_the_earlier_run(name: str, tmp_path: Path) -> None:
    """With the same users and more items, so that every index of an item moves, and categories in another order."""
    ensemble = {"ensemble": {"ensemble": 2}, "mixed": {"ensemble": 3, "ensemble_kinds": "mixed"}}.get(name, {})
    kind = "sasrec" if ensemble else name
    before = fitted(kind, tmp_path / "old", log(), described=name == "slirec", **ensemble)
    described = items(True) if name == "slirec" else None
    # the model is that of the earlier run
    after = Recommender(**STILL).fit(later(), items=described, init_from=tmp_path / "old")
    assert after.dataset.num_items == before.dataset.num_items + 3
    if name == "slirec":
        orders = [one.dataset.item_table.first_categories()[1] for one in (before, after)]  # type: ignore[union-attr]
        assert orders == [["c", "b"], ["b", "c", "d"]]
    histories = {f"h{n}": [f"i{(3 * n + step) % ITEMS}" for step in range(2 + n % 5)] for n in range(12)}
    times = {name: [10 * place for place in range(len(one))] for name, one in histories.items()}
    ways = {"k": ITEMS, "keep_seen": True, "times": times if kind in ("tisasrec", "slirec") else None}
    ids = before.dataset.item_ids.to_list()
    found = [
        one.recommend(histories=histories, allow=ids, **ways).sort("user_id", "item_id") for one in (before, after)
    ]
    assert found[0].select("user_id", "item_id").equals(found[1].select("user_id", "item_id"))
    scale = found[0]["score"].abs().max()
    assert scale > 1e-3  # type: ignore[operator]
    np.testing.assert_allclose(found[1]["score"], found[0]["score"], atol=1e-4 * scale)  # type: ignore[operator]


def test_vectors_from_elsewhere_are_told(tmp_path: Path) -> None:
    """Vectors of another encoder are not those that the weights were trained for, however many numbers they have."""
    random = np.random.default_rng(0)
    there = pl.DataFrame({"item_id": [f"i{n}" for n in range(ITEMS)], "emb": random.normal(size=(ITEMS, 3)).tolist()})
    Recommender("sasrec", **SMALL, features="emb").fit(log(), tmp_path / "old", items=there)
    for described, others in (
        (there, False),
        (there.with_columns(emb=pl.Series(random.normal(size=(ITEMS, 3)).tolist())), True),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            Recommender(**STILL).fit(later(), items=described, init_from=tmp_path / "old")
        said = [str(one.message) for one in caught if "had other vectors" in str(one.message)]
        assert len(said) == others
        assert all("(emb of 100% of the items)" in one for one in said)


@pytest.mark.slow_but_one
@pytest.mark.parametrize("name", TRAINED)
def test_each_row_belongs_to_its_id(name: str, tmp_path: Path) -> None:
    """Users and items come and go. Rows of new ids are those of a training that starts anew."""
    old = log().filter(pl.col("item_id") != "i3", pl.col("user_id") != "u4")
    old = pl.concat([old, pl.DataFrame([("solo", "i1", 1)], schema=SCHEMA, orient="row")])  # of whom nothing is learnt
    new = later().filter(pl.col("item_id") != "i5", ~pl.col("user_id").is_in(["u7", "u20"]))
    new = pl.concat([new, pl.DataFrame([("solo", f"i{n}", n) for n in range(6)], schema=SCHEMA, orient="row")])
    fitted(name, tmp_path / "old", old)
    run = Run(tmp_path / "old")
    still = {key: value for key, value in run.config.training.items() if key in ("loss", "batch_size", "windows")}
    warm = Recommender(**STILL, item_init="random").fit(new, tmp_path / "new", init_from=tmp_path / "old")
    fresh = Recommender(name, **run.config.model_config, **still, **STILL, item_init="random").fit(new)
    assert warm.dataset.fingerprint == fresh.dataset.fingerprint
    before, after, anew = (dict(one.named_parameters()) for one in (run.model(), warm.model, fresh.model))
    pairs = {"items": (ids_of(run.dataset, 0), ids_of(warm.dataset, 0)),
             "users": (ids_of(run.dataset, 1), ids_of(warm.dataset, 1))}  # fmt: skip
    kinds = {}
    for parameter, values in after.items():
        for kind, (there, here) in pairs.items():
            if len(before[parameter]) == len(there) + 1 and len(values) == len(here) + 1:
                kinds[parameter] = kind
                for identity, row in here.items():
                    was = before[parameter][there[identity]] if identity in there else torch.zeros(1)
                    expected = was if was.any() else anew[parameter][row]
                    torch.testing.assert_close(values[row], expected, atol=1e-6, rtol=1e-5)
        if parameter not in kinds:
            torch.testing.assert_close(values, before[parameter], atol=1e-6, rtol=1e-5)
    assert kinds == row_kinds(Run(tmp_path / "new").config)
    assert "items" in kinds.values()
    facts = Run(tmp_path / "new").config.init_from
    for kind, (there, here) in pairs.items():
        if kind in kinds.values():
            counts = {
                "kept": len(there.keys() & here),
                "new": len(here.keys() - there),
                "gone": len(there.keys() - here),
            }
            assert facts[kind] == counts
        else:
            assert kind not in facts
    assert (facts["run"], facts["id"]) == (str(tmp_path / "old"), run.id)


def ids_of(dataset: Dataset, users: int) -> dict[str, int]:
    """The row of each id in a table of items, or of users."""
    ids = dataset.user_ids if users else dataset.item_ids
    return {one: row + 1 - users for row, one in enumerate(ids.to_list())}


def test_ids_of_another_type_are_the_same(tmp_path: Path) -> None:
    numbers = log().with_columns(pl.col("user_id", "item_id").str.slice(1).cast(pl.Int64))
    words = pl.concat([numbers.cast({"user_id": pl.String, "item_id": pl.String}),
                       pl.DataFrame([("new", "new", 0)] * 2, schema=SCHEMA, orient="row")])  # fmt: skip
    fitted("ssept", tmp_path / "old", numbers)
    found = Recommender(**STILL).fit(words, tmp_path / "new", init_from=tmp_path / "old")
    facts = Run(tmp_path / "new").config.init_from
    assert facts["items"] == {"kept": ITEMS, "new": 1, "gone": 0}
    assert facts["users"] == {"kept": 30, "new": 1, "gone": 0}
    table, there = found.model.item_embedding.weight, Run(tmp_path / "old").model().item_embedding.weight
    for item in range(ITEMS):
        row = 1 + found.dataset.item_ids.to_list().index(str(item))
        torch.testing.assert_close(table[row], there[1 + item], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["sasrec", "gru4rec"])
def test_new_items_start_near_those_that_they_occur_with(name: str, tmp_path: Path) -> None:
    """Against cosines that a naive loop over training histories counts, in float64."""
    frame = pl.concat([later(), pl.DataFrame([("far", "alone", 1)], schema=SCHEMA, orient="row")])
    fitted(name, tmp_path / "old", log())
    warm = Recommender(**STILL, item_init="spectral").fit(frame, init_from=tmp_path / "old")
    plain = Recommender(**STILL, item_init="random").fit(frame, init_from=tmp_path / "old")
    dataset, train = warm.dataset, split_last_two(warm.dataset).train
    ids = dataset.item_ids.to_list()
    known = {1 + row for row, one in enumerate(ids) if re.fullmatch(r"i\d+", one)}
    counts, near = train.item_counts(), np.zeros((len(ids) + 1,) * 2)
    for start, end in zip(train.starts, train.ends, strict=True):
        for p in range(start, end):
            for q in range(p + 1, min(p + DISTANCE + 1, end)):
                i, j = dataset.items[p], dataset.items[q]
                if i != j:
                    near[i, j] += 1
                    near[j, i] += 1
    near /= np.sqrt(counts + SHRINKAGE)[:, None] * np.sqrt(counts + SHRINKAGE)
    near[:, [row for row in range(len(ids) + 1) if row not in known]] = 0
    tables = ["item_embedding", "output_embedding"][: 1 + (name == "gru4rec")]
    for table in tables:
        vectors, usual = (getattr(one.model, table).weight.detach().double().numpy() for one in (warm, plain))
        for row in range(1, len(ids) + 1):
            if row in known or not near[row].any():
                np.testing.assert_allclose(vectors[row], usual[row], atol=1e-6)
            else:
                expected = near[row] @ usual / near[row].sum()
                np.testing.assert_allclose(vectors[row], expected, atol=1e-6)
                assert not np.allclose(expected, usual[row], atol=1e-4)
    assert sum(row not in known and near[row].any() for row in range(1, len(ids) + 1)) == 3


def test_weights_of_a_refit_are_not_used(tmp_path: Path) -> None:
    """They know the held-out items of the earlier log, which may be held out of the new one too."""
    fitted("sasrec", tmp_path / "old", log(), refit="all")
    found = Recommender(**STILL).fit(log(), init_from=tmp_path / "old")
    first, used = (Run(tmp_path / "old").model(kind).state_dict() for kind in ("train", None))  # type: ignore[arg-type]
    name = "item_embedding.weight"
    assert not torch.allclose(first[name], used[name], atol=1e-4)
    torch.testing.assert_close(found.model.state_dict()[name], first[name], atol=1e-6, rtol=1e-5)


# ---- options ---------------------------------------------------------------------------------------------------------


def test_options_are_those_of_the_earlier_run(tmp_path: Path) -> None:
    options = {"norm": "pre", "num_heads": 2, "dropout": 0.3, "loss": "gbce", "calibration": 0.5, "negatives": 7,
               "learning_rate": 0.004, "clip_norm": 3.0, "patience": 9, "warmup_steps": 3, "seed": 5}  # fmt: skip
    fitted("sasrec", tmp_path / "old", log(), **options)
    old = Run(tmp_path / "old").config
    Recommender(epochs=3, dropout=0.1).fit(later(), tmp_path / "new", init_from=tmp_path / "old")
    new = Run(tmp_path / "new").config
    assert new.model_config == old.model_config | {"dropout": 0.1}
    anew = {"epochs": 3, **STOPS, "warmup_steps": 0.0, "seed": 0, "threads": None}
    changed = {name for name, value in new.training.items() if old.training[name] != value}
    assert {name: new.training[name] for name in anew} == anew
    assert changed - {"evaluate_every"} == {"epochs", *STOPS, "warmup_steps", "seed"}
    Recommender(loss="cross-entropy", epochs=1).fit(later(), tmp_path / "loss", init_from=tmp_path / "old")
    found = Run(tmp_path / "loss").config.training
    assert (found["loss"], found["negatives"], found["calibration"]) == ("cross-entropy", None, 0.75)
    rate = Recommender(learning_rate=0.01, epochs=1).fit(later(), tmp_path / "rate", init_from=tmp_path / "old")
    assert rate.train_config.learning_rate == 0.01
    assert Run(tmp_path / "rate").config.training["table_learning_rate"] == 0.01


def test_a_rate_that_minutes_chose_is_not_taken_over(tmp_path: Path) -> None:
    fitted("sasrec", tmp_path / "old", log(), learning_rate=0.003)
    config = json.loads((tmp_path / "old/config.json").read_text())
    config["recipe"] = {"learning_rate": "1 minutes are enough for about 100 steps"}  # as the recipe says it
    (tmp_path / "old/config.json").write_text(json.dumps(config))
    Recommender(epochs=1).fit(later(), tmp_path / "new", init_from=tmp_path / "old", minutes=1)
    found = Run(tmp_path / "new").config.training
    assert (found["learning_rate"], found["table_learning_rate"]) == (0.001, 0.001)


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("ssept", {}, "its model is sasrec, not ssept"),
        ("markov", {}, "its model is sasrec, not markov"),
        ("sasrec", {"embedding_dim": 16}, "its embedding_dim is 8, not 16"),
        ("sasrec", {"embedding_dim": 64}, "its embedding_dim is 8, not 64"),  # the default, but asked for
        ("auto", {"max_length": 7}, "its max_length is 6, not 7"),
        ("auto", {"num_blocks": 2}, "its num_blocks is 1, not 2"),
        ("auto", {"num_heads": 2}, "its num_heads is 1, not 2"),
        ("auto", {"norm": "pre"}, "its norm is paper, not pre"),
        ("auto", {"feedforward_dims": (8, 8)}, "its feedforward_dims is"),
        ("auto", {"ensemble": 2}, "its ensemble is 1, not 2"),
        ("auto", {"shard_items": True}, "leave out shard_items"),
        ("ssept", {"user_dim": 8}, "its model is sasrec, not ssept"),
    ],
)
def test_what_does_not_fit(earlier: Path, tmp_path: Path, model: str, options: dict[str, Any], said: str) -> None:
    action = lambda: Recommender(model, **options).fit(later(), tmp_path / "new", init_from=earlier)  # noqa: E731
    assert said in one_line(action)
    assert not (tmp_path / "new").exists()


def test_options_of_another_model(tmp_path: Path) -> None:
    fitted("gru4rec", tmp_path / "old", log())
    message = one_line(lambda: Recommender(norm="pre").fit(later(), init_from=tmp_path / "old"))
    assert "gru4rec has no option 'norm'" in message


def test_the_same_options_may_be_given_again(earlier: Path) -> None:
    options = {"embedding_dim": 8, "num_blocks": 1, "norm": "paper", "feedforward_dims": [8], "ensemble": 1}
    assert Recommender("sasrec", **options, epochs=1).fit(later(), init_from=earlier).epochs


def test_runs_that_are_none(earlier: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    Recommender("popularity", split="last-two").fit(log(), tmp_path / "counted")
    unfinished = Path(shutil.copytree(earlier, tmp_path / "unfinished"))
    (unfinished / "weights.safetensors").unlink()
    damaged = Path(shutil.copytree(earlier, tmp_path / "damaged"))
    weights = bytearray((damaged / "weights.safetensors").read_bytes())
    weights[-1] ^= 64
    (damaged / "weights.safetensors").write_bytes(weights)
    said = {"none": "no such run folder", "empty": "not a run folder", "file": "no such run folder",
            "counted": "is a run of popularity, which counts again in any case", "damaged": "damaged",
            "unfinished": "is missing"}  # fmt: skip
    for name, text in said.items():
        message = one_line(lambda name=name: Recommender().fit(later(), tmp_path / "new", init_from=tmp_path / name))
        assert text in message
        assert name in message
    assert not (tmp_path / "new").exists()


def test_nothing_in_common(earlier: Path) -> None:
    other = log().with_columns(pl.col("item_id").str.replace("i", "x"))
    message = one_line(lambda: Recommender().fit(other, init_from=earlier))
    assert f"{earlier}: knows none of the items of this log (i0, i1 there, x0, x1 here)" in message


def test_categories_that_a_model_needs(tmp_path: Path) -> None:
    fitted("slirec", tmp_path / "old", log(), described=True)
    message = one_line(lambda: Recommender().fit(later(), init_from=tmp_path / "old"))
    assert "its weights do not fit (" in message
    assert "give the options and items of that run" in message


def test_a_run_whose_training_has_not_ended(earlier: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(earlier, tmp_path / "half"))
    (run / "metrics.json").unlink()
    with pytest.warns(RunWarning, match="its training has not ended; training starts from the best weights that"):
        Recommender(epochs=1).fit(later(), init_from=run)


def test_what_is_given_is_known_from_what_is_default() -> None:
    given = SASRecConfig(embedding_dim=64, norm="paper")
    assert (given.given, SASRecConfig().given) == ({"embedding_dim", "norm"}, frozenset())
    assert given == SASRecConfig()
    assert "given" not in vars(given)
    assert pickle.loads(pickle.dumps(given)) == copy.deepcopy(given) == given


def test_a_model_that_is_named_is_not_mixed() -> None:
    """Also if the option is given as what it is by default."""
    for more in ({}, {"ensemble_kinds": None}):
        assert Recommender("sasrec", **more).train_config.ensemble_kinds == "same"
        assert Recommender("auto", **more).train_config.ensemble_kinds is None


def test_constants_of_counts_are_near_those_of_the_earlier_run(tmp_path: Path) -> None:
    fitted("sasrec", tmp_path / "old", log(), transitions="auto")
    warm = Recommender(**STILL).fit(later(), tmp_path / "new", init_from=tmp_path / "old")
    before, after = (json.loads((tmp_path / run / "metrics.json").read_text()) for run in ("old", "new"))
    old, new = (one["transitions"]["constants"] for one in (before, after))
    assert Run(tmp_path / "new").config.init_from["constants"] == {name: old[name] for name in VALUES}
    for name, values in VALUES.items():
        places = sorted({*values, old[name]})
        assert abs(places.index(new[name]) - places.index(old[name])) <= 1
    assert warm.model.addition is not None
    weight = before["transitions"]["weight"]
    assert Run(tmp_path / "new").config.init_from["weight"] == weight > 0
    config = tmp_path / "new/config.json"
    text = config.read_text()
    config.write_text(text.replace('"decay"', '"dacey"'))
    assert "init_from has constants that do not fit" in one_line(lambda: Run(tmp_path / "new").config)
    for wrong in ("-1", "NaN", "true", "1e300"):
        config.write_text(text.replace(f'"weight": {weight}', f'"weight": {wrong}'))
        assert "init_from has the weight" in one_line(lambda: Run(tmp_path / "new").config)


# ---- figures stay honest ---------------------------------------------------------------------------------------------


def test_held_out_items_that_were_trained_on_are_counted(tmp_path: Path) -> None:
    """An item that was met again counts only if it was trained on more often than the history shows."""
    old, new = log(seed=3), log(seed=3).filter(pl.col("timestamp") < pl.col("timestamp").max().over("user_id") - 1)
    fitted("sasrec", tmp_path / "old", old)
    with pytest.warns(RunWarning) as caught:
        Recommender(epochs=1, split="last-two").fit(new, init_from=tmp_path / "old")
    said = [str(one.message) for one in caught if "are too high" in str(one.message)]
    trained = {user: items[:-2] if len(items) > 2 else items for user, items in histories_of(old).items()}
    expected = []
    for place, name in ((-2, "validation"), (-1, "test")):
        asked = {user: items for user, items in histories_of(new).items() if len(items) > 2}
        known = sum(
            trained[user].count(items[place]) > items[:place].count(items[place]) for user, items in asked.items()
        )
        assert known > 0
        expected.append(f"{known} of {len(asked)} {name} items")
    assert [text.partition(" were in")[0] for text in said] == expected
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Recommender(epochs=1, split="last-two").fit(old, init_from=tmp_path / "old")


def histories_of(frame: pl.DataFrame) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for user, item, _ in frame.sort("timestamp", maintain_order=True).rows():
        found.setdefault(user, []).append(item)
    return found


def test_other_filters_are_said(earlier: Path) -> None:
    with pytest.warns(RunWarning, match="filtered differently \\(min_item_interactions 1 there, 2 here\\)"):
        Recommender(epochs=1, min_item_interactions=2).fit(later(), init_from=earlier)


# ---- resuming --------------------------------------------------------------------------------------------------------

WARM: dict[str, Any] = {"epochs": 4, "learning_rate": 0.01, "evaluate_every": 1, "split": "last-two", "patience": 0}


def content(folder: Path) -> dict[str, Any]:
    """The weights, the states and the configuration of a run."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*.safetensors")):
        found[str(path.relative_to(folder))] = {name: one.clone() for name, one in load_file(path).items()}
    return found | {"config.json": json.loads((folder / "config.json").read_text())}


def alike(some: dict[str, Any], others: dict[str, Any]) -> bool:
    assert some.keys() == others.keys()
    return all(same(one, others[name]) if name != "config.json" else one == others[name] for name, one in some.items())


def at_step(number: int, action: Callable[[], Any]) -> Callable[..., Any]:
    """An ``optimizer_step`` that does something before one of its calls."""
    step: Callable[..., Any] = sys.modules["seqrec.training.loop"].optimizer_step  # type: ignore[attr-defined]
    calls: list[int] = []

    def stepped(*arguments: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            action()
        return step(*arguments, **more)

    return stepped


@pytest.mark.slow_but_one
@pytest.mark.parametrize("refit", ["off", "all"])
@pytest.mark.parametrize("number", [1, 6, 11])
def test_a_resumed_run_ends_as_the_one_that_was_not(
    earlier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refit: Any, number: int
) -> None:
    """Also if the earlier run is gone by then, because the run keeps the weights that it started from."""
    old = Path(shutil.copytree(earlier, tmp_path / "old"))
    Recommender(**WARM, refit=refit).fit(later(), tmp_path / "whole", init_from=old)
    interrupt = lambda: os.kill(os.getpid(), signal.SIGINT)  # noqa: E731
    monkeypatch.setattr("seqrec.training.loop.optimizer_step", at_step(number, interrupt))
    assert Recommender(**WARM, refit=refit).fit(later(), tmp_path / "run", init_from=old).interrupted
    monkeypatch.undo()
    shutil.rmtree(old)
    Recommender(**WARM, refit=refit).fit(later(), tmp_path / "run", init_from=old, resume=True)
    assert alike(content(tmp_path / "run"), content(tmp_path / "whole"))


def test_killed_before_the_first_checkpoint(earlier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = Path(shutil.copytree(earlier, tmp_path / "old"))
    copied = lambda: shutil.copytree(tmp_path / "whole", tmp_path / "killed")  # noqa: E731
    monkeypatch.setattr("seqrec.training.loop.optimizer_step", at_step(2, copied))
    Recommender(**WARM).fit(later(), tmp_path / "whole", init_from=old)
    monkeypatch.undo()
    assert {path.name for path in (tmp_path / "killed/state").iterdir()} == {"start.safetensors"}
    shutil.rmtree(old)
    Recommender(**WARM).fit(later(), tmp_path / "killed", init_from=old, resume=True)
    assert alike(content(tmp_path / "killed"), content(tmp_path / "whole"))


def test_a_run_replaced_by_one_that_starts_from_it(
    earlier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        shutil.copytree(earlier, tmp_path / name / "run")
    monkeypatch.chdir(tmp_path / "a")  # so that the path is the same in both
    Recommender(**WARM, refit="all").fit(later(), "run", init_from="run", overwrite=True)
    monkeypatch.chdir(tmp_path / "b")
    interrupt = lambda: os.kill(os.getpid(), signal.SIGINT)  # noqa: E731
    with monkeypatch.context() as patched:
        patched.setattr("seqrec.training.loop.optimizer_step", at_step(9, interrupt))
        assert Recommender(**WARM).fit(later(), "run", init_from="run", overwrite=True).interrupted
    Recommender(**WARM, refit="all").fit(later(), "run", init_from="run", resume=True)
    assert alike(content(tmp_path / "a/run"), content(tmp_path / "b/run"))
    assert content(tmp_path / "a/run")["config.json"]["init_from"]["items"]["new"] == 3


def test_a_refit_starts_from_the_same_weights(earlier: Path, tmp_path: Path) -> None:
    added = Recommender(**WARM).fit(later(), tmp_path / "run", init_from=earlier)
    added = Recommender(**WARM, refit="all").fit(later(), tmp_path / "run", init_from=earlier, resume=True)
    memory = Recommender(**WARM, refit="all").fit(later(), init_from=earlier)
    assert same(added.model.state_dict(), memory.model.state_dict())
    still = Recommender(**STILL, refit="all").fit(later(), init_from=earlier)
    old = Run(earlier).model().state_dict()["position_embedding.weight"]
    torch.testing.assert_close(still.model.state_dict()["position_embedding.weight"], old, atol=1e-6, rtol=1e-5)


def test_another_start_is_refused(earlier: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(earlier, tmp_path / "other"))
    Recommender(**WARM).fit(later(), tmp_path / "run", init_from=earlier)
    for given in (other, None):
        options = WARM if given else SMALL | {"num_blocks": 1} | WARM
        message = one_line(
            lambda given=given, options=options: Recommender("sasrec", **options).fit(
                later(), tmp_path / "run", init_from=given, resume=True
            )
        )
        assert f"started with init_from = {earlier}, not {given}; resume with the same options" in message


@pytest.mark.parametrize("damage", ["gone", "row", "nan", "content"])
def test_a_damaged_start(earlier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    copied = lambda: shutil.copytree(tmp_path / "run", tmp_path / "killed")  # noqa: E731
    monkeypatch.setattr("seqrec.training.loop.optimizer_step", at_step(2, copied))
    Recommender(**WARM).fit(later(), tmp_path / "run", init_from=earlier)
    monkeypatch.undo()
    path = tmp_path / "killed" / START
    tensors, header = {name: one.clone() for name, one in load_file(path).items()}, read_header(path)
    path.unlink()
    if damage == "row":
        tensors["rows.items"][-1] = 10**6
    elif damage == "nan":
        tensors["weight.item_embedding.weight"][1, 1] = torch.nan
    elif damage == "content":
        tensors["weight.item_embedding.weight"][1, 1] += 1
    if damage != "gone":
        save_file(tensors, path, header.metadata)
    message = one_line(lambda: Recommender(**WARM).fit(later(), tmp_path / "killed", init_from=earlier, resume=True))
    assert str(path.name) in message
    assert {"gone": "missing", "nan": "not numbers"}.get(damage, "damaged") in message


# ---- the command line ------------------------------------------------------------------------------------------------


def test_the_command(earlier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    later().write_csv(tmp_path / "log.csv")
    command = ["fit", str(tmp_path / "log.csv"), "--out", str(tmp_path / "run"), "--init-from", str(earlier)]
    assert main([*command, "--epochs=1", "--split=last-two"]) == 0
    out, errors = capsys.readouterr()
    assert errors == ""
    said = " ".join(out.split())
    assert f"starting from {earlier}: sasrec, max_length 6, embedding_dim 8, num_blocks 1" in said
    assert "items: 15 kept, 3 new, 0 gone" in said
    assert "stops after 2 validations without an NDCG@10 that is 0.5 % better" in said
    new = Run(tmp_path / "run").config
    assert new.model_config == Run(earlier).config.model_config
    assert new.init_from["items"] == {"kept": 15, "new": 3, "gone": 0}
    for given, text in (
        (["--embedding-dim=64"], "its embedding_dim is 8, not 64"),
        (["--model=gru4rec"], "its model is sasrec, not gru4rec"),
    ):
        assert main([*command, *given, "--overwrite"]) == 2
        errors = capsys.readouterr().err
        assert len(errors.splitlines()) == 1
        assert text in errors
