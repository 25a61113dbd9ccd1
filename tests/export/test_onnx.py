"""ONNX files: the same scores and the same best items as the run, for any history, whatever the padding."""

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from seqrec import InputError, Predictor, export_onnx, onnx_predictor
from seqrec.cli.app import main
from seqrec.data.batches import histories_of, pack
from seqrec.data.dataset import Dataset
from seqrec.data.prepare import prepare
from seqrec.data.split import Histories, all_histories
from seqrec.errors import missing_extra
from seqrec.export.inputs import uses_users
from seqrec.export.model_file import model_bytes
from seqrec.export.scores import ENCODERS, run_graph
from seqrec.export.session import OnnxModel, session_of
from seqrec.export.write import largest_difference
from seqrec.models import MODELS, build_model
from seqrec.models.base import Model
from seqrec.models.ensemble import Ensemble
from seqrec.models.transitions import TransitionsConfig
from seqrec.ranking.additions import counted_addition
from seqrec.ranking.scoring import evaluation_mode, last_states
from seqrec.run.config import RunConfig, fingerprint
from seqrec.run.folder import Run

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

NUM_ITEMS, NUM_USERS = 40, 30
SMALL = {"embedding_dim": 8, "max_length": 6, "num_blocks": 2, "num_heads": 2, "dropout": 0.3}
#: Other forms of the models, by name of the model and their options.
FORMS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in MODELS),
    ("sasrec", {"norm": "pre", "num_heads": 1}),
    ("sasrec", {"norm": "post", "feedforward_dims": (12, 8), "num_blocks": 1}),
    ("sasrec", {"num_blocks": 0}),
    ("sasrec", {"attention_dim": 6, "max_length": 1}),
    ("ssept", {"user_dim": 5, "norm": "pre", "num_heads": 1}),
    ("gru4rec", {"num_layers": 3, "hidden_dim": 6, "separate_output": True}),
    ("gru4rec", {"elu": 0.5}),
    ("caser", {"user_dim": 0, "vertical_filters": 0, "window": 3}),
    ("caser", {"horizontal_filters": 0, "window": 6}),
    ("bert4rec", {"num_blocks": 0}),
    ("bert4rec", {"num_blocks": 1, "num_heads": 4, "feedforward_dim": 10}),
    ("tisasrec", {"num_heads": 1, "time_span": 3}),
    ("tisasrec", {"num_blocks": 0}),
    ("esasrec", {"num_blocks": 1, "num_heads": 4, "feedforward_dim": 10}),
    ("esasrec", {"num_blocks": 0}),
    ("lrurec", {"num_blocks": 0}),
    ("lrurec", {"num_blocks": 3, "state_dim": 5, "feedforward_dim": 6, "max_length": 1}),
    ("hstu", {"num_heads": 1, "time_buckets": 40, "max_length": 9}),
    ("hstu", {"similarity": "dot", "time_buckets": 0, "num_blocks": 1}),
    ("hstu", {"num_blocks": 0, "temperature": 0.2}),
    ("slirec", {"num_categories": 3, "category_dim": 2, "attention_length": 3, "attention_hidden_dims": (5,)}),
    ("slirec", {"hidden_dims": (7, 6, 5), "max_length": 30}),
    ("ease", {"max_length": 3}),
    ("transitions", {"decay": 1.0, "recency": 0.4, "successors": 5}),
    ("markov", {"alpha": 0.2}),
]  # fmt: skip
CONSTANTS = TransitionsConfig(damping=0.25, decay=0.8, distance=4, successors=12, recency=0.3, days=0.005)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    random = np.random.default_rng(0)
    lengths = random.integers(1, 15, NUM_USERS)
    users = np.repeat(np.arange(len(lengths)), lengths)
    items = np.r_[np.arange(NUM_ITEMS), random.integers(0, NUM_ITEMS, len(users) - NUM_ITEMS)]
    times = random.integers(10**9, 10**9 + 10**6, len(users))
    frame = {"user_id": [f"u{n}" for n in users], "item_id": [f"i{n}" for n in items], "timestamp": times}
    return prepare(pl.DataFrame(frame))


def built(name: str, dataset: Dataset, **options: Any) -> Model:
    """A model with random weights, or counts of the dataset, in evaluation mode."""
    kind = MODELS[name]
    known = {field.name: SMALL[field.name] for field in fields(kind.Config) if field.name in SMALL}
    model = build_model(name, known | options, dataset.num_items, dataset.num_users)
    return randomised(model, dataset)


def randomised(model: Model, dataset: Dataset) -> Model:
    torch.manual_seed(1)
    if model.COUNTED:
        model.count(all_histories(dataset))
        return model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        for part in model.parts:
            if hasattr(part, "user_embedding") and part.user_embedding is not None:
                part.user_embedding.weight[[2, -1]] = 0  # no embedding of their own
            if "category" in part.READS and part.config.num_categories:
                part.set_categories(torch.arange(dataset.num_items + 1) % (part.config.num_categories + 1))
    return model.eval()


def ensemble(dataset: Dataset, *names: str) -> Model:
    parts = [built(name, dataset) for name in names]
    return randomised(Ensemble(parts), dataset)


def some_histories(dataset: Dataset, seed: int, count: int) -> Histories:
    """Histories of random lengths, some of them empty, of users of the dataset and of others."""
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 14, count)
    items = [random.integers(1, dataset.num_items + 1, length) for length in lengths]
    times = [np.sort(random.integers(10**9, 10**9 + 10 ** random.integers(1, 7), length)) for length in lengths]
    found = histories_of(dataset, items, times)
    return replace(found, users=random.integers(-1, dataset.num_users, count))


def scores_of(model: Model, dataset: Dataset, histories: Histories) -> np.ndarray:
    """Scores ``[M, I + 1]`` from torch; interactions after an empty history."""
    scores = np.tile(dataset.item_counts.astype(np.float32), (len(histories), 1))
    there = np.flatnonzero(histories.lengths > 0)
    with evaluation_mode(model):
        if len(there):
            scores[there] = model.score(last_states(model, histories.take(there)))
    return scores


def feeds(model: Model, histories: Histories, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs with the padding, and items that are unknown, at random places."""
    random = np.random.default_rng(seed)
    width = int(histories.lengths.max(initial=0)) + int(random.integers(0, 4))
    items = random.choice([0, 0, -3, NUM_ITEMS + 1, 10**12], (len(histories), width))
    times = random.integers(0, 10**9, (len(histories), width))
    for row, (start, stop) in enumerate(zip(histories.starts, histories.ends, strict=True)):
        places = np.sort(random.permutation(width)[: stop - start])
        items[row, places] = histories.dataset.items[start:stop]
        times[row, places] = histories.dataset.timestamps[start:stop]
    found = {"items": items.astype(np.int64)}
    if model.USES_TIMES:
        found["timestamps"] = times
    if uses_users(model):
        found["users"] = histories.users
    return found


@pytest.mark.parametrize(("name", "options"), FORMS, ids=[f"{name}-{options}" for name, options in FORMS])
def test_scores_are_those_of_the_model(name: str, options: dict[str, Any], dataset: Dataset) -> None:
    model = built(name, dataset, **options)
    content = model_bytes(run_graph(model, dataset.item_counts))
    onnx.checker.check_model(content, full_check=True)
    session = session_of(content)
    for seed, count in enumerate((1, 2, 7, 40)):
        histories = some_histories(dataset, seed, count)
        (found,) = session.run(["scores"], feeds(model, histories, seed))
        wanted = scores_of(model, dataset, histories)
        assert found.dtype == np.float32
        assert np.isneginf(found[:, 0]).all()
        np.testing.assert_allclose(found[:, 1:], wanted[:, 1:], rtol=1e-4, atol=1e-4)
    assert np.ptp(found[:, 1:], axis=1).min() > 0  # they differ by item


def test_every_model_has_a_graph() -> None:
    assert set(ENCODERS) == {kind for kind in MODELS.values() if not kind.COUNTED}


def test_a_model_without_a_graph_is_refused(dataset: Dataset) -> None:
    class Own(MODELS["sasrec"]):  # type: ignore[misc]
        pass

    with pytest.raises(InputError, match="no ONNX graph for models of the kind Own; export another model"):
        run_graph(Own(MODELS["sasrec"].Config(), 5).eval(), np.zeros(6))


@pytest.mark.parametrize("names", [("sasrec", "sasrec"), ("sasrec", "ssept", "gru4rec"), ("tisasrec", "tisasrec")])
def test_an_ensemble_scores_by_the_mean(names: tuple[str, ...], dataset: Dataset) -> None:
    model = ensemble(dataset, *names)
    session = session_of(model_bytes(run_graph(model, dataset.item_counts)))
    histories = some_histories(dataset, 3, 25)
    (found,) = session.run(["scores"], feeds(model, histories))
    parts = [scores_of(part, dataset, histories) for part in model.parts]
    np.testing.assert_allclose(found[:, 1:], np.mean(parts, axis=0)[:, 1:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_histories_without_items_and_without_columns(name: str, dataset: Dataset) -> None:
    model = built(name, dataset)
    session = session_of(model_bytes(run_graph(model, dataset.item_counts)))
    for width in (0, 1, 9):
        nothing = histories_of(dataset, [np.empty(0, dtype=np.int64)] * 2)
        given = feeds(model, nothing) | {"items": np.zeros((2, width), dtype=np.int64)}
        if model.USES_TIMES:
            given["timestamps"] = given["items"]
        (found,) = session.run(["scores"], given)
        np.testing.assert_array_equal(found[:, 1:], np.tile(dataset.item_counts[1:], (2, 1)))


def test_users_out_of_range_are_strangers(dataset: Dataset) -> None:
    model = built("ssept", dataset)
    session = session_of(model_bytes(run_graph(model, dataset.item_counts)))
    items = np.array([[3, 1, 2]] * 5)
    (found,) = session.run(["scores"], {"items": items, "users": np.array([-1, NUM_USERS, 10**15, -(10**15), 0])})
    for row in (1, 2, 3):
        np.testing.assert_array_equal(found[row], found[0])
    assert not np.allclose(found[4, 1:], found[0, 1:])


def with_counts(name: str, dataset: Dataset, weight: float = 0.7) -> Model:
    model = ensemble(dataset, "sasrec", "ssept") if name == "ensemble" else built(name, dataset)
    if not model.COUNTED:
        model.addition = counted_addition(CONSTANTS, weight, all_histories(dataset))
    return model


@pytest.mark.parametrize("keep_seen", [False, True])
@pytest.mark.parametrize("name", ["sasrec", "gru4rec", "slirec", "ensemble", "transitions", "ease", "popularity"])
def test_the_best_items_are_those_of_the_predictor(name: str, keep_seen: bool, dataset: Dataset) -> None:
    model = with_counts(name, dataset)
    session = session_of(model_bytes(run_graph(model, dataset.item_counts, NUM_ITEMS, keep_seen)))
    histories = some_histories(dataset, 5, 30)
    items, scores = session.run(["top_items", "top_scores"], feeds(model, histories))
    ((wanted_items, wanted_scores),) = Predictor(model, dataset).rank(histories, NUM_ITEMS, keep_seen=keep_seen)
    assert (items.dtype, scores.dtype) == (np.int64, np.float32)
    assert largest_difference(scores, wanted_scores) < 1e-4
    assert ((items == 0) == (wanted_items == 0)).all()
    assert keep_seen == (items > 0).all()
    # Scores that are nearly the same may change places.
    finite = np.nan_to_num(wanted_scores, neginf=-1e9)
    clear = np.abs(np.diff(finite, axis=1, prepend=np.inf)) > 1e-4
    clear &= np.abs(np.diff(finite, axis=1, append=-np.inf)) > 1e-4
    exact = model.COUNTED and name != "ease"
    np.testing.assert_array_equal(items[clear | exact], wanted_items[clear | exact])
    assert clear.mean() > 0.5 or model.COUNTED


def test_ties_are_in_the_order_of_the_items(dataset: Dataset) -> None:
    model = built("popularity", dataset)
    session = session_of(model_bytes(run_graph(model, dataset.item_counts, 25)))
    histories = some_histories(dataset, 6, 20)
    items, _ = session.run(None, feeds(model, histories))
    ((wanted, _),) = Predictor(model, dataset).rank(histories, 25)
    np.testing.assert_array_equal(items, wanted)


def test_counts_reach_beyond_what_the_model_sees(dataset: Dataset) -> None:
    model = built("sasrec", dataset, max_length=2)
    model.addition = counted_addition(replace(CONSTANTS, decay=1.0), 5.0, all_histories(dataset))
    session = session_of(model_bytes(run_graph(model, dataset.item_counts, 10)))
    histories = some_histories(dataset, 7, 30)
    _, found = session.run(None, feeds(model, histories))
    ((_, wanted),) = Predictor(model, dataset).rank(histories, 10)
    assert largest_difference(found, wanted) < 1e-4


def test_weights_are_stored_once(dataset: Dataset) -> None:
    model = built("sasrec", dataset)
    graph = run_graph(model, dataset.item_counts)
    large = [tensor for tensor in graph.initializer if NUM_ITEMS + 1 in tensor.dims and 8 in tensor.dims]
    assert len(large) == 1
    assert model_bytes(graph) == model_bytes(run_graph(model, dataset.item_counts))  # the same bytes again


def test_a_model_too_large_for_the_format_is_refused(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqrec.export.model_file.MOST_BYTES", 1000)
    with pytest.raises(InputError, match="an ONNX file at most 2; fit one with a smaller embedding_dim"):
        model_bytes(run_graph(built("sasrec", dataset), dataset.item_counts))


def saved(folder: Path, dataset: Dataset, name: str, weight: float | None = None, **training: Any) -> Path:
    """A run folder with random weights, and counts of this weight."""
    known = {field.name: SMALL[field.name] for field in fields(MODELS[name].Config) if field.name in SMALL}
    config = RunConfig(
        name, known, dataset.num_items, dataset.num_users, dataset.has_timestamps, fingerprint(dataset),
        training=training,
    )  # fmt: skip
    model = randomised(config.build(), dataset)
    addition = None if weight is None else counted_addition(CONSTANTS, weight, all_histories(dataset))
    Run.create(folder, config, dataset, weights=model.state_dict(), addition=addition)
    return folder


@pytest.fixture(scope="module")
def run(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("run") / "run", dataset, "sasrec", 0.5)


@pytest.mark.parametrize("top_k", [None, 4])
@pytest.mark.parametrize("name", ["sasrec", "ssept", "tisasrec", "markov"])
def test_a_run_is_written_with_its_ids(name: str, top_k: int | None, dataset: Dataset, tmp_path: Path) -> None:
    folder = saved(tmp_path / "run", dataset, name)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    done = export_onnx(folder, tmp_path / "deep" / "model.onnx", top_k=top_k)
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["model.onnx", "model.onnx.ids.json"]
    assert done.difference < 1e-4
    assert done.size == done.file.stat().st_size
    ids = json.loads(done.ids.read_text(encoding="utf-8"))
    assert ids["items"] == [None, *dataset.item_ids]
    assert ids.get("users") == (dataset.user_ids.to_list() if name == "ssept" else None)
    model = onnx.load(done.file)
    facts = {one.key: one.value for one in model.metadata_props}
    assert facts == done.metadata
    assert (facts["model"], facts["run"], facts["num_items"]) == (name, ids["run"], str(NUM_ITEMS))
    assert facts["run"] == Run(folder).id
    assert facts["transition_counts"] == "no"
    assert facts.get("timestamps") == ("seconds since 1970" if name == "tisasrec" else None)
    assert [one.name for one in model.graph.output] == (["scores"] if top_k is None else ["top_items", "top_scores"])
    assert [one.version for one in model.opset_import] == [18]
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_mixed_ensemble_is_written(dataset: Dataset, tmp_path: Path) -> None:
    folder = saved(tmp_path / "run", dataset, "sasrec", 0.5, ensemble=3, ensemble_kinds="mixed")
    done = export_onnx(folder, tmp_path / "model.onnx", top_k=3)
    facts = {name: done.metadata[name] for name in ("model", "members", "num_users", "transition_counts")}
    assert facts == {
        "model": "mixed ensemble",
        "members": "3",
        "num_users": str(NUM_USERS),
        "transition_counts": "yes",
    }


def test_the_server_takes_the_engine(run: Path) -> None:
    load = pytest.importorskip("seqrec.serve.live").load
    assert isinstance(load(run, "run", "onnx").predictor.model, OnnxModel)


def test_a_log_without_times_says_so(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user_id": [1, 1, 1, 2, 2, 2], "item_id": [5, 6, 7, 7, 6, 8]})
    dataset = prepare(frame)
    done = export_onnx(saved(tmp_path / "run", dataset, "tisasrec"), tmp_path / "model.onnx")
    assert done.metadata["timestamps"] == "places in the history: 0, 1, 2, ..."
    assert json.loads(done.ids.read_text())["items"] == [None, 5, 6, 7, 8]


def test_counts_can_be_left_out(run: Path, dataset: Dataset, tmp_path: Path) -> None:
    both = export_onnx(run, tmp_path / "with.onnx"), export_onnx(run, tmp_path / "without.onnx", counts="off")
    assert [done.metadata["transition_counts"] for done in both] == ["yes", "no"]
    histories = some_histories(dataset, 8, 10)
    model = Predictor.load(run).model
    found = [session_of(done.file.read_bytes()).run(None, feeds(model, histories))[0] for done in both]
    np.testing.assert_allclose(found[1][:, 1:], scores_of(model, dataset, histories)[:, 1:], rtol=1e-4, atol=1e-4)
    assert not np.allclose(found[0][:, 1:], found[1][:, 1:])


def test_keep_seen_is_that_of_the_run(run: Path, tmp_path: Path) -> None:
    given = {None: "no", False: "no", True: "yes"}
    for keep_seen, told in given.items():
        done = export_onnx(run, tmp_path / "model.onnx", top_k=3, keep_seen=keep_seen)
        assert done.metadata["keep_seen"] == told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "k is 0; give 1 or more"),
        ({"top_k": NUM_ITEMS + 1}, f"k is {NUM_ITEMS + 1}, but there are only {NUM_ITEMS} items"),
        ({"top_k": 2.5}, "k is 2.5; give a whole number"),
        ({"keep_seen": True}, "keep_seen has an effect only on the best items; give top_k too"),
        ({"keep_seen": "no", "top_k": 3}, "keep_seen is 'no'; give True or False"),
        ({"counts": "on"}, "counts is 'on'; give auto or off"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str, run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        export_onnx(run, tmp_path / "model.onnx", **options)
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_bad_paths(run: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    places = {
        run / "weights.safetensors": "is a file of a run",
        run: "cannot be written (Is a directory)",
        tmp_path / "folder": "cannot be written (Is a directory)",
        tmp_path / "file" / "model.onnx": "cannot be",
    }
    for place, message in places.items():
        with pytest.raises(InputError) as caught:
            export_onnx(run, place)
        assert message in str(caught.value)
    with pytest.raises(InputError, match="no such run folder"):
        export_onnx(tmp_path / "nowhere", tmp_path / "model.onnx")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_file_that_differs_from_the_run_is_not_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = export_onnx(run, tmp_path / "model.onnx")
    before = done.file.read_bytes(), done.ids.read_bytes()

    def wrong(model: Model, *rest: Any) -> Any:
        model.final_norm.bias.data.add_(1.0)
        graph = run_graph(model, *rest)
        model.final_norm.bias.data.sub_(1.0)
        return graph

    monkeypatch.setattr("seqrec.export.write.run_graph", wrong)
    with pytest.raises(RuntimeError, match="not written, because its scores differ from those of the run by"):
        export_onnx(run, done.file)
    assert (done.file.read_bytes(), done.ids.read_bytes()) == before
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.slow_but_one
@pytest.mark.parametrize("names", [*((name,) for name in MODELS if not MODELS[name].COUNTED), ("sasrec", "gru4rec")])
def test_the_model_encodes_as_the_run_does(names: tuple[str, ...], dataset: Dataset) -> None:
    plain = built(names[0], dataset) if len(names) == 1 else ensemble(dataset, *names)
    plain.addition = counted_addition(CONSTANTS, 0.7, all_histories(dataset))
    model = OnnxModel(plain)
    assert not model.training
    assert (model.max_length, model.num_items) == (plain.max_length, NUM_ITEMS)
    histories = some_histories(dataset, 9, 30)
    batch = pack(histories.take(histories.lengths > 0), plain.max_length)
    with torch.inference_mode():
        torch.testing.assert_close(model.encode_last(batch), plain.encode_last(batch), rtol=1e-4, atol=1e-4)
    one = pack(histories.take(histories.lengths > 3).take(slice(1)), plain.max_length)
    with torch.inference_mode():
        torch.testing.assert_close(model.encode_last(one), plain.encode_last(one), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="an empty history has no last token"):
        model.encode_last(pack(histories.take(histories.lengths == 0), plain.max_length))
    found, wanted = (Predictor(one, dataset).rank(histories, 10) for one in (model, plain))
    assert largest_difference(next(found)[1], next(wanted)[1]) < 1e-4


def test_a_predictor_with_onnx_recommends_the_same(run: Path) -> None:
    plain, other = Predictor.load(run), onnx_predictor(run)
    assert isinstance(other.model, OnnxModel)
    asked = [["i1", "i2"], ["i7"], [f"i{n}" for n in range(20)], []]
    for one, two in zip(plain.recommend(asked, 5), other.recommend(asked, 5), strict=True):
        assert [item for item, _ in one] == [item for item, _ in two]
        assert [score for _, score in one] == pytest.approx([score for _, score in two], rel=1e-4)
        assert (one.used, one.popular) == (two.used, two.popular)
    assert [item for item, _ in plain.recommend_users("u3", 3)] == [item for item, _ in other.recommend_users("u3", 3)]
    assert plain.similar("i3", 4) == other.similar("i3", 4)
    assert plain.recommend(["i1"], 3, allow=["i5", "i6"])[0][0] == other.recommend(["i1"], 3, allow=["i5", "i6"])[0][0]


def test_threads_may_ask_at_once(run: Path) -> None:
    predictor = onnx_predictor(run)
    asked = [[f"i{(n * 7 + m) % NUM_ITEMS}" for m in range(1 + n % 5)] for n in range(60)]
    wanted = [predictor.recommend(history, 4) for history in asked]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda history: predictor.recommend(history, 4), asked)) == wanted


def test_a_fork_may_ask(run: Path, in_a_fork: Callable[..., Any]) -> None:
    predictor = onnx_predictor(run)
    wanted = predictor.recommend(["i1", "i2"], 3)
    assert in_a_fork(lambda: predictor.recommend(["i1", "i2"], 3)) == [list(pair) for pair in wanted]


def test_a_run_that_counts_has_nothing_to_encode(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="counts and has no network"):
        onnx_predictor(saved(tmp_path / "run", dataset, "transitions"))


def test_the_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.onnx"
    assert main(["export", str(run), "--onnx", str(file), "--top-k", "3", "--keep-seen", "--json", "-"]) == 0
    shown = capsys.readouterr()
    facts = json.loads(shown.out)
    assert (facts["file"], facts["bytes"], facts["top_k"]) == (str(file), file.stat().st_size, "3")
    assert f"{file}: sasrec with transition counts, 0.0 MiB. For a few users, its scores differ" in shown.err
    assert f"{file}.ids.json: the ids of {NUM_ITEMS} items" in shown.err
    assert main(["export", str(run)]) == 2
    assert "--onnx" in capsys.readouterr().err
    assert main(["export", str(run), "--onnx", str(file), "--json", f"{file}.ids.json"]) == 2
    assert "is given for two results" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["sasrec", "ssept"])  # ssept reads who it is for
def test_the_example_needs_neither_seqrec_nor_torch(name: str, run: Path, dataset: Dataset, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    if name != "sasrec":
        run = saved(tmp_path / name, dataset, name)
    export_onnx(run, file, top_k=5)
    example = Path(__file__).parents[2] / "examples" / "onnx_recommend.py"
    blocked = (
        "import runpy, sys; sys.modules['torch'] = sys.modules['seqrec'] = None; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    asked = ["i4", "nobody knows this", "i9"]
    given = [sys.executable, "-c", blocked, str(example), str(file), *asked]
    done = subprocess.run(given, capture_output=True, text=True, check=True, cwd=tmp_path)
    wanted = Predictor.load(run).recommend(["i4", "i9"], 5)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [item for item, _ in lines] == [item for item, _ in wanted]
    assert [float(score) for _, score in lines] == pytest.approx([score for _, score in wanted], abs=1e-3)
    code = [line for line in example.read_text().splitlines() if line.strip()]
    assert len(code) <= 24


@pytest.mark.parametrize("library", ["onnx", "onnxruntime"])
def test_a_missing_extra_is_one_line(
    library: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    assert main(["export", str(run), "--onnx", str(tmp_path / "model.onnx")]) == 2
    assert "pip install 'seqrec[onnx]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert "pip install 'seqrec[serve]'" in str(missing_extra("the server", "serve"))
