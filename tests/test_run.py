"""The run folder: it keeps its content, and damage is reported in one line."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from disk import disk_that_ends_at
from safetensors.torch import load_file, save_file

from seqrec import Dataset, InputError, Predictor, PrepareConfig, Recommender, SplitConfig, prepare
from seqrec.device import pick_device
from seqrec.run.config import RunConfig, fingerprint
from seqrec.run.folder import Run, check_free
from seqrec.run.tensors import _DTYPES, load_tensors, write_tensors

pytestmark = pytest.mark.usefixtures("few_constants")

DATA = {f"data/{name}" for name in ("dataset.json", "items.npy", "timestamps.npy", "offsets.npy", "user_ids.npy",
                                    "user_id_offsets.npy", "item_ids.npy", "item_id_offsets.npy")}  # fmt: skip
SIZES = {"embedding_dim": 8, "num_blocks": 1, "max_length": 6, "feedforward_dims": (12, 8)}


def log(users: int = 12, items: int = 9, shift: int = 0, text: bool = True) -> pl.DataFrame:
    rows = [(user, (user + step + shift) % items, step) for user in range(users) for step in range(4 + user % 3)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    if text:
        frame = frame.with_columns(
            pl.format("u{}", "user_id").alias("user_id"), pl.format("ï {}", "item_id").alias("item_id")
        )
    return frame


def config_of(dataset: Dataset, **changes: Any) -> RunConfig:
    values = {
        "model": "sasrec", "model_config": dict(SIZES), "num_items": dataset.num_items, "num_users": dataset.num_users,
        "has_timestamps": dataset.has_timestamps, "fingerprint": fingerprint(dataset),
        "prepare": PrepareConfig(min_user_interactions=2), "split": SplitConfig("time", 2, 4), "training": {"seed": 3},
    }  # fmt: skip
    return RunConfig(**values | changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "trained"
    Recommender("sasrec", epochs=2, batch_size=4, **SIZES).fit(log(), folder)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of a trained run, to be damaged."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def state_of(run: Run) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and facts of a checkpoint."""
    header, facts = run.state_header() or (None, {})
    assert header is not None
    return load_tensors(header), facts


def message_of(action: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("text", [True, False])
def test_what_goes_in_comes_out(tmp_path: Path, text: bool) -> None:
    dataset = prepare(log(text=text))
    config = config_of(dataset)
    run = Run.create(tmp_path / "deep" / "run", config, dataset)
    assert not run.begun
    opened = Run(str(run.folder))
    assert opened.config == config.__class__(**asdict(config) | {"prepare": config.prepare, "split": config.split,
           "model_config": dict(SIZES) | {"feedforward_dims": [12, 8]}})  # fmt: skip
    back = opened.dataset
    for name in ("items", "timestamps", "offsets"):
        wanted = getattr(dataset, name)
        assert getattr(back, name).dtype == wanted.dtype
        assert np.array_equal(getattr(back, name), wanted)
    for name in ("user_ids", "item_ids"):
        assert getattr(back, name).dtype == (pl.String if text else pl.Int64)
        assert getattr(back, name).equals(getattr(dataset, name))
    assert fingerprint(back) == config.fingerprint
    assert len(opened.split.test) == len(SplitConfig("time", 2, 4).apply(dataset).test)

    weights = {name: torch.rand_like(value) for name, value in config.build().state_dict().items()}
    opened.save_weights(weights)
    assert not opened.begun  # there is no checkpoint to resume from
    loaded = opened.model()
    assert not loaded.training
    assert all(torch.equal(value, weights[name]) for name, value in loaded.state_dict().items())

    assert opened.state_header() is None
    state = {"a": torch.arange(5), "b": torch.tensor([0.1, float("inf")], dtype=torch.float64), "c": torch.tensor(7)}
    facts = {"epoch": 3, "rows": [{"epoch": 1, "loss": 0.1 + 0.2}], "name": "ü"}
    opened.save_state(state, facts)
    assert opened.begun
    tensors, known = state_of(opened)
    assert known == facts
    assert all(
        torch.equal(tensors[name], value) and tensors[name].dtype == value.dtype for name, value in state.items()
    )

    opened.save_epochs([])
    assert opened.epochs().height == 0
    rows = [{"epoch": 1, "loss": 0.1 + 0.2, "seconds": 1.0, "total_seconds": 1.5, "tokens_per_second": 2.0}]
    rows.append(rows[0] | {"epoch": 2, "ndcg@10": 0.25})
    opened.save_epochs(rows)
    assert opened.epochs().columns == ["epoch", "loss", "seconds", "total_seconds", "tokens_per_second", "ndcg@10"]
    assert opened.epochs().to_dicts() == [rows[0] | {"ndcg@10": None}, rows[1]]

    assert opened.metrics() == {}
    opened.save_metrics({"test": {"ndcg@10": 1 / 3}})
    assert opened.metrics() == {"test": {"ndcg@10": 1 / 3}}
    assert not list(run.folder.rglob(".*"))


def test_a_run_has_the_files_of_the_design_and_no_pickle(trained: Path) -> None:
    files = content(trained)
    assert set(files) == {"config.json", "weights.safetensors", "transitions.safetensors", *DATA, "metrics.json",
                          "epochs.csv", "state/training.safetensors"}  # fmt: skip
    assert json.loads(files["config.json"])["format_version"] == 2
    assert files["epochs.csv"].decode().splitlines()[0].startswith("epoch,loss,seconds,total_seconds,tokens_per_second")


def test_fingerprint_tells_logs_apart() -> None:
    whole = log()
    assert fingerprint(prepare(whole)) == fingerprint(prepare(whole.clone()))
    others = [
        log(text=False),
        whole.head(whole.height - 1),
        whole.with_columns(pl.col("timestamp") + 1),
        whole.with_columns(pl.col("user_id").replace("u0", "u00")),
        whole.with_columns(pl.col("item_id").replace("ï 0", "ï 00")),
    ]
    assert len({fingerprint(prepare(frame)) for frame in [whole, *others]}) == 6


def test_only_a_run_is_overwritten_and_only_when_asked(run: Path, tmp_path: Path) -> None:
    dataset = prepare(log())
    config = config_of(dataset)
    file = tmp_path / "file"
    file.write_text("mine")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    for path in (file, folder):
        for overwrite in (False, True):
            assert str(path) in message_of(lambda path=path, o=overwrite: Run.create(path, config, dataset, o))
    assert file.read_text() == (folder / "thesis.txt").read_text() == "mine"

    before = content(run)
    assert "--overwrite" in message_of(lambda: Run.create(run, config, dataset))
    assert content(run) == before
    Run.create(run, config, dataset, overwrite=True)
    assert set(content(run)) == {"config.json", "epochs.csv", *DATA}

    empty = tmp_path / "empty"
    empty.mkdir()
    check_free(empty)
    assert Run.create(empty, config, dataset).config.model == "sasrec"


def test_overwriting_through_a_link_keeps_the_link(run: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(run)
    dataset = prepare(log())
    Run.create(link, config_of(dataset), dataset, overwrite=True)
    assert link.is_symlink()
    assert set(content(run)) == {"config.json", "epochs.csv", *DATA}


@pytest.mark.parametrize("name", ["config.json", "weights.safetensors", *sorted(DATA), "epochs.csv"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "garbage", "folder"])
def test_damaged_files(run: Path, name: str, damage: str) -> None:
    path = run / name
    whole = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "garbage": b"\x80\xff\x00" * 50}[damage])
    if (name, damage) == ("epochs.csv", "cut"):
        path.write_text("epoch,loss\n1,2,3,4,5\n")  # half of a CSV file can be a valid CSV file
    message = message_of(lambda: Recommender.load(run).recommend(k=1))
    assert name in message
    assert str(run) in message
    assert re.search("train again|seqrec fit", message)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff"])
def test_damaged_metrics(run: Path, damage: bytes) -> None:
    (run / "metrics.json").write_bytes(damage)
    assert str(run / "metrics.json") in message_of(lambda: Recommender.load(run))


@pytest.mark.parametrize("keep", [0, 1, 7, 100, -1])
def test_damaged_state(run: Path, keep: int) -> None:
    path = run / "state/training.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert str(path) in message_of(Run(run).state_header)
    recommender = Recommender("sasrec", epochs=3, batch_size=4, **SIZES)
    before = content(run)
    assert str(path) in message_of(lambda: recommender.fit(log(), run, resume=True))
    assert content(run) == before


def test_state_without_its_facts_or_of_another_model(run: Path) -> None:
    path = run / "state/training.safetensors"
    tensors, facts = state_of(Run(run))
    save_file(tensors, path)
    assert str(path) in message_of(Run(run).state_header)
    recommender = Recommender("sasrec", epochs=3, batch_size=4, **SIZES)
    for name in ("model.item_embedding.weight", "optimizer.steps", "optimizer.item_embedding.weight.last"):
        Run(run).save_state({key: value for key, value in tensors.items() if key != name}, facts)
        assert str(run) in message_of(lambda: recommender.fit(log(), run, resume=True))
    wrong = tensors | {"model.item_embedding.weight": torch.zeros(3, 8)}
    Run(run).save_state(wrong, facts)
    assert str(run) in message_of(lambda: recommender.fit(log(), run, resume=True))


def test_no_run_at_all(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for name, hint in (("missing", "seqrec fit"), ("file", "seqrec fit"), (".", "config.json")):
        assert hint in message_of(lambda name=name: Recommender.load(tmp_path / name))


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"format_version": 3}, "update seqrec"),
        ({"format_version": None}, "format_version"),
        ({"format_version": "1"}, "format_version"),
        ({"num_items": 10}, "train again"),
        ({"num_items": "9"}, "num_items"),
        ({"num_users": 11}, "train again"),
        ({"num_users": True}, "num_users"),
        ({"model": "sasrex"}, "sasrex"),
        ({"model": None}, "model"),
        ({"model": "popularity"}, "train again"),
        ({"model_config": None}, "model_config"),
        ({"model_config": {"embedding_dim": "8"}}, "train again"),
        ({"model_config": {"embedding_dim": -8}}, "embedding_dim"),
        ({"model_config": {"of_the_future": 1}}, "of_the_future"),
        ({"training": None}, "training"),
        ({"training": {"of_the_future": 1}}, "of_the_future"),
        ({"training": {"epochs": "many"}}, "train again"),
        ({"prepare": None}, "train again"),
        ({"prepare": {"of_the_future": 1}}, "of_the_future"),
        ({"split": {"split": "sideways"}}, "sideways"),
        ({"has_timestamps": 1}, "has_timestamps"),
        ({"of_the_future": 1}, "of_the_future"),
    ],
)
def test_damaged_configuration(run: Path, change: dict[str, Any], hint: str) -> None:
    path = run / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    message = message_of(lambda: Recommender.load(run))
    assert hint in message
    assert str(run) in message


@pytest.mark.parametrize("name", ["model", "num_items", "prepare", "split", "fingerprint", "format_version"])
def test_configuration_without_a_key(run: Path, name: str) -> None:
    path = run / "config.json"
    values = json.loads(path.read_text())
    del values[name]
    path.write_text(json.dumps(values))
    assert name in message_of(lambda: Recommender.load(run))


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda w: w | {"item_embedding.weight": torch.zeros(5, 8)}, r"\[5, 8\].*\[10, 8\]"),
        (lambda w: w | {"item_embedding.weight": torch.zeros(10, 8, dtype=torch.float64)}, "float64.*float32"),
        (lambda w: w | {"position_embedding.weight": torch.zeros(6, 8, dtype=torch.int64)}, "int64.*float32"),
        (lambda w: {name: value for name, value in w.items() if name != "final_norm.bias"}, "final_norm.bias.*missing"),
        (lambda w: w | {"extra.weight": torch.zeros(1)}, "extra.weight.*unknown"),
        (lambda w: {}, "missing"),
    ],
)
def test_weights_of_another_model(run: Path, change: Callable[[dict], dict], hint: str) -> None:
    path = run / "weights.safetensors"
    save_file(change(load_file(path)), path)
    message = message_of(Run(run).model)
    assert re.search(hint, message)
    assert str(path) in message
    assert "train again" in message


def test_weights_that_are_not_numbers(run: Path) -> None:
    weights = load_file(run / "weights.safetensors")
    Run(run).save_weights(weights | {"final_norm.weight": torch.full((8,), torch.nan)})
    assert "not numbers" in message_of(lambda: Recommender.load(run).recommend(k=1))


@pytest.mark.parametrize("model", ["popularity", "markov", "recent-popularity"])
def test_counted_weights_of_another_catalogue(tmp_path: Path, model: str) -> None:
    for name, items in (("a", 9), ("b", 7)):
        Recommender(model).fit(log(items=items), tmp_path / name)
    shutil.copy(tmp_path / "b/weights.safetensors", tmp_path / "a/weights.safetensors")
    assert "weights.safetensors" in message_of(lambda: Recommender.load(tmp_path / "a"))


def as_format_1(run: Path) -> None:
    """Turn a run into one of an earlier seqrec, as far as it is read."""
    values = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(values | {"format_version": 1}))
    shutil.rmtree(run / "data")
    for name in ("users", "items"):
        pl.DataFrame({"id": [1]}).write_parquet(run / f"{name}.parquet")


def test_a_run_of_format_1_says_what_to_do(run: Path) -> None:
    whole = Recommender.load(run).recommend(k=2)
    as_format_1(run)
    before = content(run)
    recommender = Recommender("sasrec", epochs=2, batch_size=4, **SIZES)
    resume = lambda: recommender.fit(log(), run, resume=True)  # noqa: E731
    for action in (lambda: Recommender.load(run), lambda: Predictor.load(run), resume):
        message = message_of(action)
        assert message.startswith(f"{run / 'config.json'}: format 1 is from an earlier seqrec")
        assert f"train again: seqrec fit LOG --out {run} --overwrite" in message
    assert content(run) == before
    recommender.fit(log(), run, overwrite=True)
    assert not {"users.parquet", "items.parquet"} & set(content(run))
    assert Recommender.load(run).recommend(k=2).equals(whole)


def test_opening_reads_what_is_asked_for(run: Path) -> None:
    opened = Run(run)
    opened.model()
    dataset = opened.dataset
    assert dataset.saved is not None
    assert not dataset.saved.checked
    assert "series" not in vars(dataset.users) | vars(dataset.catalogue)
    assert all(isinstance(getattr(dataset, name), np.memmap) for name in ("items", "timestamps", "offsets"))
    assert len(opened.split.test) == 12
    assert dataset.saved.checked


def test_an_opened_run_is_the_one_that_was_there(run: Path) -> None:
    wanted = Recommender.load(run).recommend(k=2)
    dataset = Run(run).dataset
    Recommender("popularity").fit(log(shift=4), run, overwrite=True)
    recommender = Recommender("sasrec", epochs=2, batch_size=4, **SIZES).fit(dataset)  # its files were replaced
    assert recommender.recommend(k=2).equals(wanted)


def test_a_full_disk_leaves_the_old_run_whole(run: Path) -> None:
    before = content(run)
    opened = Run(run)
    large = {name: torch.zeros(100_000) for name in ("a", "b")}
    rows = [{"epoch": epoch, "loss": 0.5} for epoch in range(3000)]
    actions: dict[str, Callable[[], Any]] = {
        "weights.safetensors": lambda: opened.save_weights(large),
        "state/training.safetensors": lambda: opened.save_state(large, {}),
        "epochs.csv": lambda: opened.save_epochs(rows),
        "metrics.json": lambda: opened.save_metrics({"rows": rows}),
    }
    for name, action in actions.items():
        with disk_that_ends_at(4096):
            message = message_of(action)
        assert str(run / name) in message
        assert "no space left" in message
        assert content(run) == before


@pytest.mark.parametrize("part", [7, 2**26])
def test_tensors_are_written_byte_for_byte_as_safetensors_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    monkeypatch.setattr("seqrec.run.tensors._PART", part)
    values = {f"{dtype}"[6:] + end: (torch.randn(3, 4) * 9).to(dtype) for dtype in _DTYPES for end in ("", '.ä"')}
    values |= {"empty": torch.zeros(0, 2), "one": torch.tensor(5), "turned": torch.randn(4, 3).T}
    for metadata in ({}, {"run": json.dumps({"id": "ü", "part": "weights"})}):
        write_tensors(tmp_path / "ours", values, metadata)
        save_file({name: value.contiguous() for name, value in values.items()}, tmp_path / "theirs", metadata or None)
        assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize("size", [0, 10, 300, 700, 1000, 1200, 2000, 3000])
def test_a_full_disk_leaves_no_half_run(run: Path, tmp_path: Path, size: int) -> None:
    before = content(run)
    recommender = Recommender.load(run)
    with disk_that_ends_at(size):
        message = message_of(lambda: recommender.save(tmp_path / "new"))
        again = message_of(lambda: recommender.save(run, overwrite=True))
    assert str(tmp_path / "new") in message
    assert str(run) in again
    assert content(run) == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("size", [0, 1500, 3000, 5000])
def test_a_disk_full_from_the_start_leaves_no_run_of_a_fit(tmp_path: Path, size: int) -> None:
    recommender = Recommender("sasrec", epochs=2, batch_size=4, **SIZES)
    with disk_that_ends_at(size):
        message = message_of(lambda: recommender.fit(log(), tmp_path / "new"))
    assert "no space left" in message
    assert list(tmp_path.iterdir()) == []


def test_devices() -> None:
    assert pick_device("cpu").type == "cpu"
    for name in ("tpu9", "", "cuda:99", "meta?"):
        assert "give auto or cpu" in message_of(lambda name=name: pick_device(name))


def described() -> pl.DataFrame:
    ids = log()["item_id"].unique().sort()
    vectors = pl.Series([[float(n), 1.0] for n in range(len(ids))], dtype=pl.Array(pl.Float32, 2))
    return pl.DataFrame({"item_id": ids, "title": [f"T {n}" for n in range(len(ids))], "price": 1.5, "vector": vectors})


def table_in(folder: Path) -> Path:
    (path,) = folder.rglob("item_table.parquet")
    return path


def test_the_item_table_comes_back(tmp_path: Path):
    recommender = Recommender("popularity").fit(log(), tmp_path / "run", items=described())
    loaded = Recommender.load(tmp_path / "run")
    assert loaded.dataset.item_table is not None
    assert loaded.dataset.item_table.frame.equals(described())
    assert loaded.recommend(k=2).equals(recommender.recommend(k=2))
    assert loaded.recommend(k=2).columns == ["user_id", "item_id", "title", "score", "rank"]
    recommender.save(tmp_path / "saved")
    assert Recommender.load(tmp_path / "saved").recommend(k=2).equals(recommender.recommend(k=2))
    Recommender("popularity").fit(log(), tmp_path / "run", overwrite=True)  # leaves nothing of the old run behind
    assert Recommender.load(tmp_path / "run").recommend(k=2).columns == ["user_id", "item_id", "score", "rank"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: path.write_bytes(b""),
        lambda path: described().head(3).write_parquet(path),
        lambda path: described().with_columns(item_id=pl.lit("x")).write_parquet(path),
        lambda path: described().with_columns(title=pl.lit(1)).write_parquet(path),
        lambda path: (path.rename(path.with_name("x")), path.symlink_to("x")),
        lambda path: (path.unlink(), path.mkdir()),
    ],
)
def test_a_damaged_item_table_is_one_line(tmp_path: Path, damage: Callable[[Path], Any]):
    Recommender("popularity").fit(log(), tmp_path / "run", items=described())
    damage(table_in(tmp_path / "run"))
    with pytest.raises(InputError, match=r"item_table\.parquet") as raised:
        Recommender.load(tmp_path / "run")
    assert "\n" not in str(raised.value)
