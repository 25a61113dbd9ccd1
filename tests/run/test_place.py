"""The lock of a run folder, its replacement, recovery after failures and kills, and changes by other programs."""

import os
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from seqrec import InputError, Recommender, Run
from seqrec.cli.app import main
from seqrec.errors import RunWarning
from seqrec.run.lock import InUseError, Lock
from seqrec.run.place import Place

pytestmark = pytest.mark.usefixtures("few_constants")

SMALL: dict[str, Any] = {"embedding_dim": 4, "num_blocks": 1, "max_length": 5, "batch_size": 8, "threads": 1}


def log(shift: int = 1) -> pl.DataFrame:
    rows = [(f"u{u}", f"i{(u + step * shift) % 9}", step) for u in range(16) for step in range(5)]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place") / "run"
    Recommender(epochs=1, **SMALL).fit(log(), folder)
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def elsewhere(action: Callable[[], Any]) -> tuple[int, str]:
    """Run an action in another process. Returns how it ended, and its error."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            action()
        except Exception as error:  # noqa: BLE001
            os.write(writes, str(error).encode())
        os._exit(0)
    os.close(writes)
    with os.fdopen(reads) as file:
        said = file.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


def claim(folder: Path, act: Callable[[], Any] = lambda: None) -> None:
    with Place(folder):
        act()


def at_step(number: int, act: Callable[[], Any]) -> Callable[[], bool]:
    """A ``stop`` function that acts after a training step."""
    steps = [0]

    def stop() -> bool:
        steps[0] += 1
        if steps[0] == number:
            act()
        return False

    return stop


def raises(error: BaseException) -> Callable[[], Any]:
    def act() -> None:
        raise error

    return act


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), MemoryError("much"), InputError("bad"), ZeroDivisionError(), SystemExit(1)]
)
def test_the_old_run_is_back_after_any_error(run: Path, error: BaseException, link: bool) -> None:
    before = content(run)
    out = run.parent / "link"
    out.symlink_to("run")
    seen: list[Any] = []

    def act() -> None:
        seen.append(Recommender.load(run).recommend(k=2))  # the old run answers while the new one trains
        raise error

    out = out if link else run
    with pytest.raises(type(error)) as caught:
        Recommender(epochs=9, **SMALL).fit(log(2), out, overwrite=True, stop=at_step(1, act))
    assert content(run) == before
    assert names(run.parent) == ["link", "run"]
    said = [str(caught.value), *getattr(caught.value, "__notes__", [])]
    assert any(f"{out} is unchanged, nothing of the new run is kept" in text for text in said)
    assert seen[0].equals(Recommender.load(run).recommend(k=2))


def test_once_it_has_weights_the_new_run_stays(run: Path) -> None:
    seen = []

    def act() -> None:
        seen.append(names(run.parent))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        Recommender(epochs=9, evaluate_every=1, **SMALL).fit(log(2), run, overwrite=True, stop=at_step(3, act))
    assert caught.value.__notes__ == [f"{run} holds the new run with its best saved weights, the old run was removed"]
    assert len(seen[0]) == 3  # the run, the old one, the lock
    assert names(run.parent) == ["run"]
    assert Recommender.load(run).train_config.epochs == 9


def test_a_checkpoint_is_kept_and_gone_on_with(run: Path) -> None:
    before = content(run)
    options = SMALL | {"epochs": 3, "checkpoint_minutes": 0, "evaluate_every": 3}
    with pytest.raises(KeyboardInterrupt) as caught:
        Recommender(**options).fit(log(2), run, overwrite=True, stop=at_step(3, raises(KeyboardInterrupt())))
    assert "--resume continues the new run" in caught.value.__notes__[0]
    assert content(run) == before
    with pytest.warns(RunWarning, match="--resume continues it, --overwrite starts again"):
        Recommender.load(run)
    Recommender(**options).fit(log(2), run, resume=True)
    assert names(run.parent) == ["run"]
    Recommender(**options).fit(log(2), run.parent / "whole")
    weights = [(folder / "weights.safetensors").read_bytes() for folder in (run, run.parent / "whole")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("where", ["notes.txt", "state/notes.txt", "state/deep/notes.txt", ".mine.partial"])
def test_files_of_others_are_never_deleted(run: Path, where: str) -> None:
    (run / where).parent.mkdir(exist_ok=True)
    (run / where).write_text("mine")
    before = content(run)
    for action in (
        lambda: Recommender("markov").fit(log(), run, overwrite=True),
        lambda: Recommender("markov").fit(log()).save(run, overwrite=True),
    ):
        with pytest.raises(InputError, match="holds other files too") as caught:
            action()
        assert where.removesuffix("/notes.txt") in str(caught.value)
    assert content(run) == before


def test_a_file_that_came_while_the_new_run_was_made_is_kept(run: Path) -> None:
    with pytest.warns(RunWarning, match=r"holds a file that is not part of a run \(state/notes\.txt\)"):
        Recommender(epochs=1, **SMALL).fit(
            log(2), run, overwrite=True, stop=at_step(1, lambda: (run / "state/notes.txt").write_text("mine"))
        )
    [kept] = [path for path in run.parent.iterdir() if path != run]
    assert content(kept) == {"state/notes.txt": b"mine"}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("what", ["removed", "renamed", "replaced", "emptied"])
def test_a_run_that_somebody_takes_away(run: Path, what: str, overwrite: bool) -> None:
    out = run if overwrite else run.parent / "new"
    other = Path(shutil.copytree(run, run.parent / "other"))

    def act() -> None:
        if what == "emptied":
            for path in out.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            return
        shutil.rmtree(out) if what != "renamed" else out.rename(run.parent / "elsewhere")
        if what == "replaced":
            shutil.copytree(other, out)

    options = SMALL | {"epochs": 50, "average_decay": 0.0, "evaluate_every": 1, "patience": 0}
    steps: list[int] = []
    with pytest.raises(InputError, match="was removed or replaced") as caught:
        Recommender(**options).fit(
            log(2), out, overwrite=overwrite, stop=at_step(1 if overwrite else 5, lambda: (act(), steps.append(1)))
        )
    assert str(out) in str(caught.value)
    if what in ("removed", "renamed"):
        assert not out.exists()
    elif what == "replaced":
        assert content(out) == content(other)
    else:
        assert content(out) == {}
    assert {path.name for path in run.parent.iterdir() if path.name.startswith(".")} == set()


@pytest.mark.slow
def test_the_second_one_hears_who_is_first(run: Path) -> None:
    heard = []

    def act() -> None:
        for name, action in {
            "overwrite": lambda: Recommender("markov").fit(log(), run, overwrite=True),
            "resume": lambda: Recommender(epochs=2, **SMALL).fit(log(), run, resume=True),
            "save": lambda: Recommender("markov").fit(log()).save(run, overwrite=True),
        }.items():
            with pytest.raises(InputError) as caught:
                action()
            heard.append((name, str(caught.value)))
        heard.append(("process", elsewhere(lambda: claim(run))[1]))

    Recommender(epochs=1, **SMALL).fit(log(2), run, overwrite=True, stop=at_step(1, act))
    assert [name for name, _ in heard] == ["overwrite", "resume", "save", "process"]
    assert all(f"{run}: is in use by this process on " in text for _, text in heard[:3])
    assert f"is in use by process {os.getpid()} on " in heard[3][1]
    assert names(run.parent) == ["run"]


def test_of_threads_one_trains(tmp_path: Path) -> None:
    ended: list[str] = []
    barrier = threading.Barrier(3)

    def fit(seed: int) -> None:
        barrier.wait()
        try:
            Recommender(epochs=10, patience=0, seed=seed, **SMALL).fit(log(), tmp_path / "run")
            ended.append(f"trained {seed}")
        except InputError as error:
            ended.append(str(error))

    threads = [threading.Thread(target=fit, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [trained] = [text for text in ended if text.startswith("trained")]
    assert all(
        "is in use by this process" in text or "already holds a run" in text for text in ended if text != trained
    )
    assert Recommender.load(tmp_path / "run").train_config.seed == int(trained[-1])


def test_a_run_that_is_being_written_says_so_to_readers(run: Path) -> None:
    heard = []

    def act() -> None:
        with pytest.raises(InputError) as caught:
            Recommender.load(run.parent / "new")
        heard.append(str(caught.value))

    Recommender(epochs=1, **SMALL).fit(log(2), run.parent / "new", stop=at_step(1, act))
    assert "weights.safetensors: is missing" in heard[0]
    assert "this process on " in heard[0]
    assert heard[0].endswith("writes there, try again later")
    with Place(run), pytest.warns(RunWarning, match="this process on .* writes there; this is its current content"):
        Recommender.load(run)


def test_a_lock_of_a_killed_process_stops_nobody(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert elsewhere(lambda: claim(run, lambda: os.kill(os.getpid(), signal.SIGKILL)))[0] == -signal.SIGKILL
    assert names(tmp_path) == [".run.lock"]
    Recommender("markov").fit(log(), tmp_path / "run")
    assert names(tmp_path) == ["run"]


def test_a_file_that_is_no_lock_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".run.lock").write_text("mine")
    with pytest.raises(InputError, match=r"\.run\.lock: is not a lock of seqrec"):
        Recommender("markov").fit(log(), tmp_path / "run")
    assert (tmp_path / ".run.lock").read_text() == "mine"
    lock = Lock(tmp_path / "other", tmp_path / "other")
    lock.take()
    with pytest.raises(InUseError):
        Lock(tmp_path / "other", tmp_path / "other").take(0)
    lock.release()
    assert names(tmp_path) == [".run.lock"]


def left(run: Path, kind: str, but: str = "") -> Path:
    """A folder next to a run, as a kill leaves it."""
    copy = Path(shutil.copytree(run, run.parent / f".run.0123abcd.{kind}"))
    if but:
        (copy / but).unlink()
    return copy


READERS: dict[str, Callable[[Path], Any]] = {
    "load": Recommender.load,
    "evaluate": lambda run: main(["evaluate", str(run)]),
    "resume": lambda run: Recommender(epochs=1, **SMALL).fit(log(), run, resume=True),
}


@pytest.mark.parametrize("reader", READERS)
def test_left_between_the_two_renames(run: Path, reader: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(run)
    left(run, "new", "state/training.safetensors")
    run.rename(run.parent / ".run.aaaaaaaa.old")
    if reader == "evaluate":
        assert READERS[reader](run) == 0
        assert "the old run is back in its place" in capsys.readouterr().err
    else:
        with pytest.warns(RunWarning, match="the old run is back in its place"):
            READERS[reader](run)
    assert content(run).keys() == before.keys()
    assert names(run.parent) == ["run"]


@pytest.mark.parametrize("reader", [*READERS, "fit"])
@pytest.mark.parametrize("kind", ["old", "partial", "new"])
def test_what_is_left_is_swept(run: Path, reader: str, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(run)
    left(run, kind, "state/training.safetensors")
    if reader == "fit":
        assert main(["fit", "nowhere.csv", "--out", str(run)]) == 2
        with pytest.raises(InputError, match="already holds a run"):
            Recommender("markov").fit(log(), run)
    else:
        READERS[reader](run)
    assert content(run)["weights.safetensors"] == before["weights.safetensors"]
    assert names(run.parent) == ["run"]


def test_what_an_earlier_version_left(run: Path) -> None:
    """The killed process trained in the run folder itself, after moving the old run aside."""
    before = content(run)
    shutil.copytree(run, run.parent / ".run.abcd_efg.old")
    (run / "weights.safetensors").unlink()
    (run / "state/training.safetensors").unlink()
    with pytest.warns(RunWarning, match="back in its place"):
        Recommender.load(run)
    assert content(run) == before
    assert names(run.parent) == ["run"]


def test_what_is_no_run_beside_it_is_left_alone(run: Path) -> None:
    (run.parent / ".run.previous.old").mkdir()
    (run.parent / ".run.previous.old/thesis.txt").write_text("mine")
    with pytest.warns(RunWarning, match=r"thesis\.txt"):
        Recommender("markov").fit(log(), run, overwrite=True)
    assert (run.parent / ".run.previous.old/thesis.txt").read_text() == "mine"


def test_the_folder_around_it_is_read_only(tmp_path: Path) -> None:
    def act() -> None:
        if os.geteuid() == 0:  # root ignores permissions
            os.setgid(65534)
            os.setuid(65534)
        claim(tmp_path / "new")

    tmp_path.chmod(0o555)
    said = elsewhere(act)[1]
    tmp_path.chmod(0o755)
    assert said == f"{tmp_path / 'new'}: cannot be written (Permission denied); check the path and its permissions"


def test_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behave like Windows: folders cannot be opened, and only writable files can be flushed."""
    opened, flushed = os.open, os.fsync
    read_only = set()

    def no_folders(path: Any, flags: int, *more: Any, **options: Any) -> int:
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        file = opened(path, flags, *more, **options)
        (read_only.discard if flags & (os.O_WRONLY | os.O_RDWR) else read_only.add)(file)
        return file

    def only_writable(file: int) -> None:
        if file in read_only:
            raise OSError(9, "Bad file descriptor")
        flushed(file)

    monkeypatch.setattr(os, "open", no_folders)
    monkeypatch.setattr(os, "fsync", only_writable)
    for overwrite in (False, True):
        Recommender(epochs=1, **SMALL).fit(log(), tmp_path / "run", overwrite=overwrite)
    Recommender.load(tmp_path / "run").recommend_to(tmp_path / "out.csv", k=2)
    assert names(tmp_path) == ["out.csv", "run"]


@pytest.mark.slow
def test_a_reader_reads_one_run(run: Path) -> None:
    """While another process keeps replacing the run, every read returns one run or the other, never a mixture."""
    markov = Recommender("markov").fit(log())
    wanted = {name: recommender.recommend(k=2) for name, recommender in
              (("sasrec", Recommender.load(run)), ("markov", markov))}  # fmt: skip
    other = Recommender.load(run)
    ended = threading.Event()

    def replace() -> None:
        while not ended.is_set():
            for recommender in (markov, other):
                recommender.save(run, overwrite=True)
                time.sleep(0.001)

    thread = threading.Thread(target=replace)
    thread.start()
    met, refused = set(), []
    try:
        for _ in range(25):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", RunWarning)
                    found = Recommender.load(run)
            except InputError as error:
                refused.append(str(error))
                continue
            met.add(found.model_name)
            assert found.recommend(k=2).equals(wanted[found.model_name])
    finally:
        ended.set()
        thread.join()
    assert met
    assert all("keeps replacing" in text or "writes there" in text for text in refused), refused
    assert names(run.parent) == ["run"]


def test_a_run_opens_as_soon_as_it_has_weights(tmp_path: Path) -> None:
    """The disk may be full right after the first weights, before any epoch is recorded."""
    opened = []

    def look(self: Run, weights: Any, save: Any = Run.save_weights) -> None:
        save(self, weights)
        opened.append(Recommender.load(self.folder).epochs)

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", RunWarning)
        patch.setattr(Run, "save_weights", look)
        Recommender(epochs=1, **SMALL).fit(log(), tmp_path / "run")
    assert opened == [[]]
