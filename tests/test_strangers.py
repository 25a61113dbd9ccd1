"""A run folder from somebody else is input. docs/strangers.md lists what it can and cannot do, line by line."""

import functools
import json
import os
import random
import shutil
import socket
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from forging import put, put_ids
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from seqrec import InputError, Recommender
from seqrec.cli.app import main
from seqrec.models import MODELS
from seqrec.run.folder import Run
from seqrec.run.tensors import checksum, mark_of

pytestmark = pytest.mark.usefixtures("few_constants")

SIZES: dict[str, Any] = {"embedding_dim": 8, "num_blocks": 1, "max_length": 6, "feedforward_dims": (12, 8)}
OPTIONS = SIZES | {"epochs": 2, "batch_size": 4, "evaluate_every": 1, "patience": 0}
DATA = [f"data/{name}" for name in ("dataset.json", "items.npy", "timestamps.npy", "offsets.npy", "user_ids.npy",
                                    "user_id_offsets.npy", "item_ids.npy", "item_id_offsets.npy")]  # fmt: skip
FILES = ["config.json", "weights.safetensors", "transitions.safetensors", *DATA, "metrics.json", "epochs.csv"]
STATE = "state/training.safetensors"
REFIT = ["weights-train.safetensors", "state/refit-all-2-training.safetensors"]


def log(users: int = 12, items: int = 9, shift: int = 0) -> pl.DataFrame:
    rows = [(f"u{u}", f"i{(u * shift + u + s) % items}", s) for u in range(users) for s in range(4 + u % 3)]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("strangers") / "run"
    Recommender("sasrec", **OPTIONS).fit(log(), folder)
    return folder


@pytest.fixture(scope="module")
def of_each(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that returns a run of a model, not to be changed."""

    @functools.cache
    def fitted(model: str) -> Path:
        sizes = {"slirec": {"attention_hidden_dims": (8, 4), "hidden_dims": (8, 4)}}.get(model, {})
        counted = {} if MODELS[model].COUNTED else {"epochs": 1, "embedding_dim": 8, "average_decay": 0.0}
        folder = tmp_path_factory.mktemp("strangers") / "run"
        Recommender(model, **sizes, **counted).fit(log(), folder)
        return folder

    return fitted


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of a trained run, to be damaged."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def resume(folder: Path, **changes: Any) -> Recommender:
    return Recommender("sasrec", **OPTIONS | {"epochs": 3} | changes).fit(log(), folder, resume=True)


def refused(action: Callable[[], Any]) -> str:
    """The one-line error of an action."""
    with pytest.raises(InputError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1500
    return message


def answer(run: Path, opened: Callable[[Path], Recommender] = Recommender.load) -> pl.DataFrame | None:
    """The recommendations of a run, or None if it is refused with an InputError. Other errors are raised."""
    message = ""
    try:
        return opened(run).recommend(k=3)
    except InputError as error:
        message = str(error)
    assert message
    assert "\n" not in message
    return None


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], Any], **more: str) -> None:
    """Change tensors of a file as a stranger would: its mark still names this run."""
    tensors, kept = {name: value.clone() for name, value in load_file(path).items()}, metadata(path)
    changed = change(tensors)
    save_file(tensors if changed is None else changed, path, metadata=kept | more)


# ---- files of another run --------------------------------------------------------------------------------------------

OTHERS: dict[str, dict[str, Any]] = {
    "log": {},
    "seed": {"seed": 1},
    "learning rate": {"learning_rate": 0.01},
    "model": {"dropout": 0.1},
    "split": {"split": "time", "valid_from": 3, "test_from": 5},
}


@pytest.mark.slow_but_one
@pytest.mark.parametrize("what", OTHERS)
def test_files_of_another_run_are_refused(run: Path, tmp_path: Path, what: str) -> None:
    frame = log(shift=4) if what == "log" else log()
    other = tmp_path / "other"
    Recommender("sasrec", **OPTIONS | OTHERS[what]).fit(frame, other)
    for name in ("weights.safetensors", STATE):
        folder = Path(shutil.copytree(run, tmp_path / f"mixed-{Path(name).stem}"))
        shutil.copy(other / name, folder / name)
        before = content(folder)
        action = (
            (lambda f=folder: Recommender.load(f)) if name == "weights.safetensors" else (lambda f=folder: resume(f))
        )
        message = refused(action)
        assert str(folder / name) in message
        assert "another run" in message
        assert "train again" in message
        assert content(folder) == before
        if name == "weights.safetensors":  # training would end with these weights
            assert "another run" in refused(lambda f=folder: resume(f))
    shutil.copy(other / "config.json", run / "config.json")
    assert "train again" in refused(lambda: Recommender.load(run))


def test_users_of_another_run_are_refused(run: Path, tmp_path: Path) -> None:
    Recommender("popularity").fit(log(shift=4), tmp_path / "other")
    shutil.copy(tmp_path / "other/data/items.npy", run / "data/items.npy")  # of the same length
    assert "items.npy" in refused(lambda: Recommender.load(run).recommend(k=1))
    assert "items.npy" in refused(lambda: resume(run))
    shutil.rmtree(run / "data")
    shutil.copytree(tmp_path / "other/data", run / "data")
    for action in (lambda: Recommender.load(run), lambda: resume(run)):
        message = refused(action)
        assert f"{run / 'data'}: is not the data that the run was made with (fingerprint" in message


def test_weights_of_the_same_recipe_are_the_same(run: Path, tmp_path: Path) -> None:
    Recommender("sasrec", **OPTIONS | {"threads": 1, "checkpoint_minutes": 3.0}).fit(log(), tmp_path / "again")
    assert (tmp_path / "again/weights.safetensors").read_bytes() == (run / "weights.safetensors").read_bytes()
    shutil.copy(tmp_path / "again" / STATE, run / STATE)
    assert len(resume(run).epochs) == 3


def test_a_file_of_another_part_or_of_none_is_refused(run: Path) -> None:
    whole = (run / "weights.safetensors").read_bytes()
    save_file(
        load_file(run / "weights.safetensors"), run / "weights.safetensors", mark_of(Run(run).id, "training state")
    )
    assert "training state" in refused(lambda: Recommender.load(run))
    (run / "weights.safetensors").write_bytes(whole)
    save_file(load_file(run / "weights.safetensors"), run / "weights.safetensors")
    assert "which run" in refused(lambda: Recommender.load(run))


# ---- links, pipes and others that are not files  -----------------------------------------------------------------


@pytest.mark.slow_but_one
@pytest.mark.parametrize(
    "name",
    [*FILES, *REFIT, "state", "data", STATE, "training.png", "state/mean-77.safetensors", "data/x", "x"],
)
@pytest.mark.parametrize("inside", [False, True])
def test_links_in_a_run_are_refused_before_anything_is_written(
    run: Path, tmp_path: Path, name: str, inside: bool
) -> None:
    elsewhere = run / "kept" if inside else tmp_path / "elsewhere"
    elsewhere.mkdir()
    if (run / name).exists():
        shutil.move(run / name, elsewhere / "victim")
    else:
        (elsewhere / "victim").write_text("my notes")
    (run / name).symlink_to(elsewhere / "victim")
    before = content(tmp_path)
    for action in (lambda: Recommender.load(run), lambda: resume(run)):
        message = refused(action)
        assert str(run / name) in message
        assert "symbolic link" in message
    assert content(tmp_path) == before


def test_a_run_folder_that_is_a_link_is_fine(run: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("run")
    assert Recommender.load(tmp_path / "link").recommend(k=1).height == 12
    resume(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()


def test_hard_links_are_not_written_through(run: Path, tmp_path: Path) -> None:
    victims = {}
    for name in (*FILES[1:], STATE):
        victim = tmp_path / name.replace("/", "-")
        os.link(run / name, victim)
        victims[victim] = victim.read_bytes()
    resume(run)
    assert all(victim.read_bytes() == before for victim, before in victims.items())
    assert (run / "epochs.csv").read_bytes() != victims[tmp_path / "epochs.csv"]


@pytest.mark.slow_but_one
@pytest.mark.parametrize("kind", ["pipe", "socket", "folder"])
@pytest.mark.parametrize("name", [*FILES, "state", "data", STATE])
def test_what_is_no_file_is_refused_at_once(run: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    if kind == "pipe":
        os.mkfifo(path)  # opening it would wait for a writer for ever
    elif kind == "folder" and name not in ("state", "data"):
        path.mkdir()
    elif kind == "socket":
        monkeypatch.chdir(path.parent)  # paths of sockets must be short
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path.name)
    else:
        path.write_text("a file where a folder should be")
    for action in (lambda: Recommender.load(run), lambda: resume(run)):
        message = refused(action)
        assert str(path if name != "config.json" else run) in message


def test_a_leftover_that_is_a_folder_is_let_be(run: Path) -> None:
    (run / ".x.partial").mkdir()
    (run / ".x.partial/mine").write_text("mine")
    resume(run)
    assert (run / ".x.partial/mine").read_text() == "mine"


# ---- sizes -----------------------------------------------------------------------------------------------------------

HUGE: list[dict[str, Any]] = [
    {"num_items": 10**8}, {"num_items": 2**31}, {"num_items": 2**70}, {"num_items": -1}, {"num_items": 0},
    {"num_users": 10**9}, {"num_users": -5},
    *({"model_config": {name: value}} for value in (10**6, 10**8, 2**62, 2**63, 10**40)
      for name in ("num_blocks", "embedding_dim", "max_length", "num_heads", "attention_dim")),
    {"model_config": {"feedforward_dims": [10**9, 10**9]}},
    {"model_config": {"feedforward_dims": [8] * 20_000}},
]  # fmt: skip


@pytest.mark.parametrize("change", HUGE, ids=lambda change: str(change)[:50])
def test_sizes_are_compared_before_anything_is_made(run: Path, change: dict[str, Any]) -> None:
    path = run / "config.json"
    values = json.loads(path.read_text())
    change = {k: values[k] | v if isinstance(v, dict) else v for k, v in change.items()}
    path.write_text(json.dumps(values | change))
    message = refused(lambda: Recommender.load(run))
    assert "train again" in message


@pytest.mark.slow_but_one
@pytest.mark.parametrize(
    ("model", "change"),
    [
        ("gru4rec", {"num_layers": 10**6}),
        ("bert4rec", {"num_blocks": 10**6}),
        ("caser", {"window": 10**6, "max_length": 10**6}),
        ("caser", {"horizontal_filters": 10**9}),
        ("ssept", {"num_blocks": 10**6}),
        ("ssept", {"user_dim": 10**12}),
        ("tisasrec", {"time_span": 10**11}),
        ("lrurec", {"state_dim": 10**11}),
        ("lrurec", {"num_blocks": 10**6}),
        ("slirec", {"hidden_dims": [8] * 20_000}),
        ("slirec", {"num_categories": 10**12}),
        ("slirec", {"attention_length": 10**9, "max_length": 10**9}),
        ("markov", {"max_length": 2**70}),
        ("transitions", {"max_length": 2**20, "decay": 1.0}),
        ("transitions", {"distance": 2**40}),
    ],
)
def test_sizes_of_every_model(
    of_each: Callable[[str], Path], tmp_path: Path, model: str, change: dict[str, Any]
) -> None:
    shutil.copytree(of_each(model), tmp_path / "run")
    path = tmp_path / "run/config.json"
    values = json.loads(path.read_text())
    values["model_config"] |= change
    path.write_text(json.dumps(values))
    assert "train again" in refused(lambda: Recommender.load(tmp_path / "run"))


@pytest.mark.parametrize("name", ["weights.safetensors", STATE])
@pytest.mark.parametrize(
    "head",
    [
        struct.pack("<Q", 2**63),
        struct.pack("<Q", 10**9),
        struct.pack("<Q", 20) + b'{"a":' + b"[" * 15,
        struct.pack("<Q", 200_000) + b"[" * 200_000,
        struct.pack("<Q", 67) + b'{"a":{"dtype":"F32","shape":[9999999999],"data_offsets":[0,39999999]}}',
        struct.pack("<Q", 61) + b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}',
        struct.pack("<Q", 59) + b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,8]}}      ',
    ],
    ids=["length", "longer than the file", "cut", "deep", "size", "overflow", "negative"],
)
def test_heads_that_lie(run: Path, name: str, head: bytes) -> None:
    (run / name).write_bytes(head + bytes(64))
    message = refused(lambda: Recommender.load(run) if name.startswith("weights") else resume(run))
    assert str(run / name) in message


# ---- JSON and CSV ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "metrics.json"])
@pytest.mark.parametrize(
    "text", ["[" * 200_000, '{"a":' * 200_000, "1" * 5000, "NaN", "[1]", '"x"', "{}x", '{"a": \x00}', ""]
)
def test_json_that_is_none_of_ours(run: Path, name: str, text: str) -> None:
    (run / name).write_text(text)
    assert str(run / name) in refused(lambda: Recommender.load(run))
    assert main(["recommend", str(run)]) == 2


def test_a_configuration_of_megabytes(run: Path) -> None:
    path = run / "config.json"
    path.write_text(path.read_text() + " " * 2**20)
    assert "bytes" in refused(lambda: Recommender.load(run))


BAD: list[Any] = [None, True, -1, 2**63, 1.5, float("nan"), "x", "\ud800", [], [1], {}, {"a": []}]


@pytest.mark.slow_but_one
@pytest.mark.parametrize("part", [None, "model_config", "training", "prepare", "split"])
def test_every_value_of_the_configuration_is_looked_at(run: Path, part: str | None) -> None:
    path = run / "config.json"
    whole = json.loads(path.read_text())
    wanted = Recommender.load(run).recommend(k=3)
    values = whole if part is None else whole[part]
    for name in list(values):
        for bad in BAD:
            if bad == values[name] and type(bad) is type(values[name]):
                continue
            changed = {**values, name: bad}
            path.write_text(json.dumps(changed if part is None else {**whole, part: changed}))
            found = answer(run)
            if found is not None:  # for example another number of threads, which changes nothing
                assert name in ("epochs", "threads", "device", "checkpoint_minutes", "recipe"), (name, bad)
                assert found.equals(wanted)


@pytest.mark.parametrize(
    "text",
    [
        "epoch,loss\n1,x\n2,3\n",
        "epoch,loss\n2,0.5\n",
        "epoch,loss\nx,0.5\n",
        "epoch\n1\n",
        "loss\n1\n",
        "epoch,loss\n1,2,3",
    ],
)
def test_epochs_that_are_none(run: Path, text: str) -> None:
    (run / "epochs.csv").write_text(text)
    assert "epochs.csv" in refused(lambda: Recommender.load(run))


def test_epochs_whose_validation_begins_late(run: Path) -> None:
    rows = "".join(f"{epoch},0.5,{'0.25' if epoch > 150 else ''}\n" for epoch in range(1, 201))
    (run / "epochs.csv").write_text(f"epoch,loss,ndcg@10\n{rows}")
    assert Recommender.load(run).epochs[-1]["ndcg@10"] == 0.25


# ---- weights ---------------------------------------------------------------------------------------------------------


def signed(run: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change the weights and their checksum."""
    weights = {name: value.clone() for name, value in load_file(run / "weights.safetensors").items()}
    changed = change(weights)
    Run(run).save_weights(weights if changed is None else changed)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["item_embedding.weight", "position_embedding.weight", "final_norm.bias"])
def test_weights_that_are_not_finite(run: Path, name: str, value: float) -> None:
    def change(weights: dict[str, torch.Tensor]) -> None:
        weights[name].view(-1)[-1] = value

    signed(run, change)
    assert "not numbers" in refused(lambda: Recommender.load(run))


ZEROS: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "all": lambda weights: {name: torch.zeros_like(value) for name, value in weights.items()},
    "items": lambda weights: weights | {"item_embedding.weight": torch.zeros(10, 8)},
    "equal items": lambda weights: weights | {"item_embedding.weight": torch.ones(10, 8)},
    "last norm": lambda weights: weights | {n: torch.zeros(8) for n in ("final_norm.weight", "final_norm.bias")},
}


@pytest.mark.parametrize("what", ZEROS)
def test_weights_that_rank_nothing(run: Path, what: str) -> None:
    signed(run, ZEROS[what])
    message = refused(lambda: Recommender.load(run))
    assert "zero everywhere" in message or "alike" in message
    assert str(run / "weights.safetensors") in message


def test_a_changed_number_is_noticed(run: Path) -> None:
    def change(weights: dict[str, torch.Tensor]) -> None:
        weights["item_embedding.weight"][3] += 0.01

    rewrite(run / "weights.safetensors", change)
    assert "checksum" in refused(lambda: Recommender.load(run))


COUNTED: dict[str, list[tuple[str, Callable[[torch.Tensor], torch.Tensor]]]] = {
    "popularity": [("counts", torch.zeros_like), ("counts", lambda x: x - 5), ("counts", lambda x: x[1:])],
    "recent-popularity": [("recent", lambda x: x + 100), ("recent", lambda x: x - 9), ("counts", torch.zeros_like)],
    "transitions": [
        ("counts", torch.zeros_like),
        ("counts", lambda x: -x),
        ("counts", lambda x: x[1:]),
        ("offsets", lambda x: x + 1),
        ("offsets", lambda x: x.flip(0)),
        ("offsets", lambda x: x * 2**40),
        ("offsets", lambda x: x[1:]),
        ("columns", lambda x: x[1:]),
        ("columns", lambda x: x * 10**6),
        ("columns", lambda x: x - 10),
        ("columns", lambda x: x.long()),
        ("columns", lambda x: x[:, None]),
        ("values", lambda x: x[1:]),
        ("values", lambda x: -x),
        ("values", lambda x: x * 1e30),
        ("values", lambda x: x * torch.nan),
        ("values", lambda x: x.double()),
    ],
    "markov": [
        ("keys", lambda x: x[1:]),
        ("keys", lambda x: x.flip(0)),
        ("keys", lambda x: x + 10**6),
        ("keys", lambda x: x - 10**6),
        ("keys", lambda x: x[:, None]),
        ("times", lambda x: x[1:]),
        ("times", lambda x: x - 100),
        ("times", lambda x: x * 2**58),
        ("times", lambda x: x.double()),
        ("starts", lambda x: x + 1),
        ("starts", lambda x: x.flip(0)),
        ("starts", lambda x: x * 10**12),
        ("outgoing", lambda x: x + 1),
        ("counts", lambda x: -x),
    ],
}


@pytest.mark.parametrize("model", COUNTED)
def test_contents_of_counted_models(tmp_path: Path, model: str) -> None:
    Recommender(model).fit(log(), tmp_path / "run")
    weights = load_file(tmp_path / "run/weights.safetensors")
    for name, change in COUNTED[model]:
        Run(tmp_path / "run").save_weights(weights | {name: change(weights[name]).contiguous()})
        assert "weights.safetensors" in refused(lambda: Recommender.load(tmp_path / "run"))
    Run(tmp_path / "run").save_weights(weights)
    assert Recommender.load(tmp_path / "run").recommend(k=2).height == 24


# ---- transition counts beside the weights ----------------------------------------------------------------------------

COUNTS = "transitions.safetensors"


def forge(run: Path, change: Callable[[dict[str, torch.Tensor]], Any] = dict, **facts: Any) -> None:
    """Change tensors, weight or constants of the counts as somebody would who knows the format."""
    tensors = {name: value.clone().contiguous() for name, value in change(load_file(run / COUNTS)).items()}
    mark = json.loads(metadata(run / COUNTS)["run"])
    facts = {"weight": mark["weight"], "config": mark["config"]} | facts
    mark |= facts | {"crc32": checksum(tensors, json.dumps(facts))}
    save_file(tensors, run / COUNTS, metadata={"run": json.dumps(mark)})


FORGED: dict[str, dict[str, Any]] = {
    **{f"weight {weight}": {"weight": weight} for weight in (-1.0, float("nan"), float("inf"), 1e300, "x", None, [])},
    **{f"config {config}": {"config": config} for config in (
        None, [], {"decay": 2.0}, {"decay": "x"}, {"distance": 2**70}, {"max_length": 2**40}, {"unknown": 1},
        {"scale": 1e300}, {"neighbours": 1e300}, {"successors": 0},
    )},
    "another table": {"change": lambda x: x | {"more": torch.ones(3)}},
    "no counts": {"change": lambda x: {name: part for name, part in x.items() if name != "counts"}},
    **{f"{name} {number}": {"change": lambda x, name=name, change=change: x | {name: change(x[name])}}
       for number, (name, change) in enumerate(COUNTED["transitions"])},
}  # fmt: skip


@pytest.mark.slow_but_one
@pytest.mark.parametrize("what", FORGED)
def test_counts_that_are_impossible(run: Path, what: str) -> None:
    forge(run, lambda x: x | table_of(x))
    assert Recommender.load(run).recommend(k=2).height == 24
    forge(run, **FORGED[what])
    message = refused(lambda: Recommender.load(run))
    assert str(run / COUNTS) in message
    assert "train again" in message


def table_of(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A table in which each item leads to the one before it."""
    num_items = len(tensors["counts"]) - 1
    columns = torch.arange(1, num_items, dtype=torch.int32)
    return {"offsets": torch.tensor([0, 0, *range(num_items)]), "columns": columns, "values": torch.ones(len(columns))}


def test_counts_of_another_run_or_part_are_refused(run: Path, tmp_path: Path) -> None:
    Recommender("sasrec", **OPTIONS | {"seed": 1}).fit(log(), tmp_path / "other")
    whole = (run / COUNTS).read_bytes()
    shutil.copy(tmp_path / "other" / COUNTS, run / COUNTS)
    assert "another run" in refused(lambda: Recommender.load(run))
    shutil.copy(run / "weights.safetensors", run / COUNTS)
    assert "is not the transitions of this run" in refused(lambda: Recommender.load(run))
    save_file(load_file(run / "weights.safetensors"), run / COUNTS)
    assert "which run" in refused(lambda: Recommender.load(run))
    (run / COUNTS).write_bytes(whole)
    shutil.copy(run / COUNTS, run / "weights.safetensors")
    assert "weights.safetensors" in refused(lambda: Recommender.load(run))


def test_a_changed_weight_is_noticed(run: Path) -> None:
    whole = (run / COUNTS).read_bytes()
    forge(run, weight=2.0)
    changed = (run / COUNTS).read_bytes()
    (run / COUNTS).write_bytes(changed.replace(b'"weight\\": 2.0', b'"weight\\": 4.0'))
    assert (run / COUNTS).read_bytes() not in (whole, changed)
    assert "checksum" in refused(lambda: Recommender.load(run))


def test_counts_that_are_gone_are_missed(run: Path) -> None:
    (run / COUNTS).unlink()
    facts = json.loads((run / "metrics.json").read_text())
    for weight, missed in ((2.0, True), (0.0, False), ("x", False), (None, False)):
        text = json.dumps(facts | {"transitions": {"weight": weight}})
        (run / "metrics.json").write_text(text)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert Recommender.load(run).recommend(k=1).height == 12
        assert [str(run / COUNTS) in str(one.message) for one in caught] == [True] * missed


# ---- ids and histories -----------------------------------------------------------------------------------------------

ITEM_IDS: dict[str, Callable[[], pl.Series]] = {
    "twice": lambda: pl.Series(["i0", "i0", *(f"i{i}" for i in range(2, 9))]),
    "unsorted": lambda: pl.Series([f"i{i}" for i in reversed(range(9))]),
    "others": lambda: pl.Series([f"j{i}" for i in range(9)]),
    "numbers": lambda: pl.Series(range(9)),
    "more": lambda: pl.Series([f"i{i:02}" for i in range(10)]),
}


@pytest.mark.parametrize("kind", ITEM_IDS)
def test_ids_of_another_kind(run: Path, kind: str) -> None:
    put_ids(run / "data", "item", ITEM_IDS[kind]())
    for action in (lambda: Recommender.load(run).recommend(k=1), lambda: resume(run)):
        assert str(run / "data") in refused(action)


@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.uint64, np.bool_, ">i8", "S4", "U4", "M8[s]", "V8"])
def test_ids_of_another_type(run: Path, dtype: Any) -> None:
    put(run / "data", "item_id_offsets", None)
    put(run / "data", "item_ids", np.zeros(9, dtype=dtype))
    assert "item_ids.npy" in refused(lambda: Recommender.load(run))


def test_texts_that_are_none(run: Path) -> None:
    letters = np.load(run / "data/item_ids.npy")
    put(run / "data", "item_ids", np.where(np.arange(len(letters)) == 3, 255, letters).astype(np.uint8))
    for action in (
        lambda: Recommender.load(run).recommend(k=1),
        lambda: Recommender.load(run).recommend(histories=[["i1"]], k=9),
        lambda: Recommender.load(run).similar(["i0"], 8),
    ):
        assert "is not valid text" in refused(action)


HISTORIES: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "beyond": ("items", lambda x: x * 1000),
    "zero": ("items", lambda x: x * 0),
    "negative": ("items", lambda x: -x),
    "wider": ("items", lambda x: x.astype(np.int64)),
    "floats": ("items", lambda x: x.astype(np.float32)),
    "nested": ("items", lambda x: x[:, None]),
    "other order": ("items", lambda x: x[::-1]),
    "time backwards": ("timestamps", lambda x: x[::-1]),
    "times too large": ("timestamps", lambda x: x + 2**62),
    "times too small": ("timestamps", lambda x: x - 2**62),
    "rising too far": ("offsets", lambda x: x + np.where(np.arange(len(x)) == 3, 1000, 0)),
    "falling": ("offsets", lambda x: x - np.where(np.arange(len(x)) == 3, 1000, 0)),
    "shifted": ("offsets", lambda x: x + 1),
}


@pytest.mark.parametrize("kind", HISTORIES)
def test_histories_out_of_range(run: Path, kind: str) -> None:
    name, change = HISTORIES[kind]
    put(run / "data", name, np.ascontiguousarray(change(np.load(run / f"data/{name}.npy"))))
    for action in (
        lambda: Recommender.load(run).recommend(k=1),
        lambda: Recommender.load(run).evaluate(),
        lambda: Recommender.load(run).dataset.statistics,
        lambda: resume(run),
    ):
        assert str(run / "data") in refused(action)
    if kind not in ("other order", "shifted"):  # a few users are not enough to detect it
        assert str(run / "data") in refused(lambda: Recommender.load(run).recommend(users=["u2"], k=1))


def test_what_filters_dropped_is_looked_at(tmp_path: Path) -> None:
    rated = log().with_columns(rating=pl.Series([5, 1, 5, 5, 5] * 12))
    Recommender("popularity", min_rating=3).fit(rated, tmp_path / "run")
    whole = {name: np.load(tmp_path / f"run/data/{name}.npy") for name in ("met_items", "met_offsets")}
    somebody = Run(tmp_path / "run").dataset.user_ids[int(np.flatnonzero(np.diff(whole["met_offsets"]))[-1])]
    for name, change in (
        ("met_items", lambda x: x * 100),
        ("met_items", lambda x: -x),
        ("met_items", lambda x: x[1:]),
        ("met_offsets", lambda x: x + 10**6),
        ("met_offsets", lambda x: -x),
        ("met_offsets", lambda x: x[1:]),
    ):
        put(tmp_path / "run/data", name, change(whole[name]))
        message = refused(lambda: Recommender.load(tmp_path / "run").recommend(users=[somebody], k=1))
        assert str(tmp_path / "run/data") in message
        put(tmp_path / "run/data", name, whole[name])
    assert Recommender.load(tmp_path / "run").recommend(users=[somebody], k=1).height == 1


# ---- the training state ----------------------------------------------------------------------------------------------

STATES: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "moment shrunk": lambda s: s | {"optimizer.final_norm.weight.first": torch.zeros(1)},
    "second moment shrunk": lambda s: s | {"optimizer.final_norm.weight.second": torch.zeros(0)},
    "moment doubled": lambda s: s | {"optimizer.final_norm.weight.first": torch.zeros(8, dtype=torch.float64)},
    "moment reshaped": lambda s: s | {"optimizer.final_norm.weight.first": torch.zeros(8, 1)},
    "table moment shrunk": lambda s: s | {"optimizer.item_embedding.weight.first": torch.zeros(1, 8)},
    "count of another shape": lambda s: s | {"optimizer.final_norm.weight.step": torch.ones(3)},
    "count of another type": lambda s: s | {"optimizer.final_norm.weight.step": torch.tensor(1)},
    "count of 0": lambda s: s | {"optimizer.final_norm.weight.step": torch.tensor(0.0)},
    "count beyond the steps": lambda s: s | {"optimizer.final_norm.weight.step": torch.tensor(1e9)},
    "one moment less": lambda s: {k: v for k, v in s.items() if k != "optimizer.final_norm.weight.second"},
    "rows beyond the steps": lambda s: s | {"optimizer.item_embedding.weight.last": torch.full((10,), 2**30).int()},
    "rows below 0": lambda s: s | {"optimizer.item_embedding.weight.last": torch.full((10,), -1).int()},
    "rows as floats": lambda s: s | {"optimizer.item_embedding.weight.last": torch.zeros(10)},
    "steps below 0": lambda s: s | {"optimizer.steps": torch.tensor(-1)},
    "steps without end": lambda s: s | {"optimizer.steps": torch.tensor(2**60)},
    "steps as a list": lambda s: s | {"optimizer.steps": torch.tensor([6, 6])},
    "steps as a fraction": lambda s: s | {"optimizer.steps": torch.tensor(6.0)},
    "one step more": lambda s: s | {"optimizer.steps": s["optimizer.steps"] + 1},
    "moment not finite": lambda s: s | {"optimizer.final_norm.weight.first": torch.full((8,), torch.nan)},
    "table moment infinite": lambda s: s | {"optimizer.item_embedding.weight.second": torch.full((10, 8), torch.inf)},
    "second moment below 0": lambda s: s | {"optimizer.item_embedding.weight.second": torch.full((10, 8), -1.0)},
    "weights not finite": lambda s: s | {"model.final_norm.weight": torch.full((8,), torch.inf)},
    "weights of another shape": lambda s: s | {"model.final_norm.weight": torch.zeros(4)},
    "weights of another type": lambda s: s | {"model.final_norm.weight": torch.zeros(8).half()},
    "mean not finite": lambda s: s | {"mean.final_norm.weight": torch.full((8,), torch.nan)},
    "mean of another shape": lambda s: s | {"mean.final_norm.weight": torch.zeros(3)},
    "mean of another type": lambda s: s | {"mean.final_norm.weight": torch.zeros(8).double()},
    "no mean": lambda s: {k: v for k, v in s.items() if not k.startswith("mean.")},
    "a mean of more": lambda s: s | {"mean.more": torch.zeros(3)},
    "another part": lambda s: s | {"elsewhere.x": torch.zeros(1)},
    "another weight": lambda s: s | {"model.x": torch.zeros(1), "optimizer.y.first": torch.zeros(1)},
    "nothing": lambda s: {},
}


@pytest.mark.slow_but_one
@pytest.mark.parametrize("what", STATES)
def test_tensors_of_the_state(run: Path, what: str) -> None:
    rewrite(run / STATE, STATES[what])
    before = content(run)
    assert str(run / STATE) in refused(lambda: resume(run))
    assert content(run) == before


@pytest.mark.slow
def test_every_fact_of_the_state_is_looked_at(run: Path) -> None:
    facts = json.loads(metadata(run / STATE)["facts"])
    before = content(run)
    bad: list[Any] = [None, True, "x", [1], 2**70, float("nan")]
    more: dict[str, list[Any]] = {
        **{name: [-3, 10**6, 1.5] for name in ("epoch", "step", "tokens", "worse", "best_epoch")},
        "seconds": [-3.0], "best_value": [-3, 2],
        "rows": [[], [{"epoch": 1}], [{"epoch": 2}, {"epoch": 1}], [1, 2], [{"epoch": 1}, {"epoch": 2, "x": "y"}]],
    }  # fmt: skip

    def refuse(facts: str) -> None:
        rewrite(run / STATE, lambda state: None, facts=facts)
        assert str(run / STATE) in refused(lambda: resume(run)), facts

    for name in facts:
        for value in bad + more.get(name, []):
            refuse(json.dumps(facts | {name: value}))
        refuse(json.dumps({key: value for key, value in facts.items() if key != name}))
    for text in ("[" * 100_000, "[]", "{", "1"):
        refuse(text)
    (run / STATE).write_bytes(before[STATE])
    assert content(run) == before
    assert len(resume(run).epochs) == 3


# ---- anything --------------------------------------------------------------------------------------------------------


def damaged(whole: bytes, dice: random.Random) -> bytes:
    """The content of a file with a random fault."""
    place = dice.randrange(len(whole))
    kind = dice.choice(["flip", "cut", "bytes", "text", "swap", "twice", "insert"])
    if kind == "flip":
        return whole[:place] + bytes([whole[place] ^ (1 << dice.randrange(8))]) + whole[place + 1 :]
    if kind == "cut":
        return whole[:place]
    if kind == "bytes":
        return whole[:place] + dice.choice([b"\0", b"\xff"]) * 8 + whole[place + 8 :]
    if kind == "text":
        wanted = dice.choice([b"1", b"F32", b"8", b"true", b'"'])
        return whole.replace(wanted, dice.choice([b"2", b"I64", b"-1", b"null", b"[", b"99999999999"]), 1)
    if kind == "swap":
        other = dice.randrange(len(whole))
        low, high = sorted((place, other))
        return whole[:low] + whole[high:] + whole[low:high]
    return whole + whole if kind == "twice" else whole[:place] + dice.randbytes(3) + whole[place:]


@pytest.mark.slow_but_one
@pytest.mark.parametrize("name", FILES)
def test_damage_gives_the_same_answer_or_one_line(run: Path, name: str) -> None:
    wanted = Recommender.load(run).recommend(k=3)
    whole = (run / name).read_bytes()
    dice = random.Random(f"damage of {name}")
    for _ in range(20):
        (run / name).write_bytes(damaged(whole, dice))
        found = answer(run)
        assert found is None or found.equals(wanted)


def test_damage_of_the_state_is_resumed_or_one_line(trained: Path, tmp_path: Path) -> None:
    whole = (trained / STATE).read_bytes()
    dice = random.Random(f"damage of {STATE}")
    for number in range(8):
        run = Path(shutil.copytree(trained, tmp_path / str(number)))
        (run / STATE).write_bytes(damaged(whole, dice))
        answer(run, resume)
        assert Recommender.load(run).recommend(k=1).height == 12  # the weights are good either way
