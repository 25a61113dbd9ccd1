"""The entry point of the command line: arguments as people write them, and one line per error."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from seqrec import Recommender
from seqrec.cli import app
from seqrec.cli.app import main

CLEAR = "\x1b[2J\x1b]52;c;aGFjaw==\x1b\\"  # clears the screen and sets the clipboard


@pytest.fixture(scope="module")
def hyphens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with ids that begin with hyphens, as at Yelp and YouTube."""
    folder = tmp_path_factory.mktemp("hyphens") / "run"
    rows = [(f"-Usr{u}" if u else "--u0", f"{'-' * (i % 3)}Biz{(u + i) % 7}", i) for u in range(9) for i in range(5)]
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    Recommender("markov").fit(log, folder)
    return folder


def users_in(out: str) -> list[str]:
    return [line.split(",")[0] for line in out.splitlines()[1:]]


@pytest.mark.parametrize(
    ("arguments", "users"),
    [
        (["--users", "-Usr1", "-k", "1"], ["-Usr1"]),
        (["-k", "1", "--users", "-Usr1", "--u0", "-Usr2"], ["-Usr1", "--u0", "-Usr2"]),
        (["--users", "-Usr1", "-k=1", "--strict"], ["-Usr1"]),
        (["-k", "1", "--users", "--", "-Usr1", "--strict"], ["-Usr1", "--strict"]),
        (["--users=-Usr1", "--users=-Usr2", "-k", "1"], ["-Usr1", "-Usr2"]),
        (["--history", "-Biz1", "--Biz2", "Biz3", "-k", "1"], ["0"]),
    ],
)
def test_ids_may_begin_with_a_hyphen(
    hyphens: Path, arguments: list[str], users: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recommend", str(hyphens), "--format", "csv", *arguments]) == 0
    assert users_in(capsys.readouterr().out) == users


def test_similar_takes_ids_that_begin_with_a_hyphen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(u, f"{'-' * (i % 3)}Biz{(u + i) % 7}", i) for u in range(9) for i in range(5)]
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    Recommender("sasrec", embedding_dim=8, epochs=1).fit(log, tmp_path / "run")
    for form in (["-Biz2", "-k", "1"], ["-k", "1", "--", "-Biz2"], ["-k", "1", "-Biz2", "--Biz3"]):
        assert main(["similar", str(tmp_path / "run"), "--format", "csv", *form]) == 0
        assert users_in(capsys.readouterr().out)[0] == "-Biz2"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["recommend", "RUN", "--users", "a", "--strct"],
            "Unknown option: --strct. Did you mean --strict? See seqrec recommend --help",
        ),
        (["fit", "LOG"], "fit needs --out. See seqrec fit --help"),
        (["fit", "LOG", "--out"], "--out needs a value. See seqrec fit --help"),
        (["fit", "--out", "x"], "fit needs LOG. See seqrec fit --help"),
        (["fit", "LOG", "more", "--out", "x"], "fit cannot use more; an option may be missing before it."),
        (
            ["fit", "LOG", "--out", "x", "--model", "caser", "--time-buckets", "3"],
            "--time-buckets is an option of hstu, not of caser. See seqrec fit --help",
        ),
        (["fitt"], 'Unknown command "fitt". Did you mean "fit"? See seqrec --help'),
        (["train"], 'Unknown command "train". Choose from: inspect, fetch, fit,'),
        (["recommend", "RUN", "--users", "a", "--keepseen"], "Unknown option: --keepseen"),
        (["recommend", "RUN", "-x"], "Unknown option: -x (write a value that begins with - as --flag=VALUE"),
        (["recommend", "RUN", "-k", "1.5"], "1.5 is not a whole number"),
        (["recommend", "RUN", "-k", "two"], "unable to convert"),
        (["recommend", "RUN", "--users"], "no id given"),
        (["fit", "RUN", "--out", "x", "--epochs", "2.9"], "--epochs: 2.9 is not a whole number"),
        (["fit", "RUN", "--out", "x", "--seed", "1.9"], "--seed: 1.9 is not a whole number"),
        (["fit", "RUN", "--out", "x", "--negatives", ".5"], "--negatives: .5 is not a whole number"),
        (["fit", "RUN", "--out", "x", "--feedforward-dims", "8", "2.5"], "2.5 is not a whole number"),
        (["bench", "--embedding-dim", "1e-3"], "1e-3 is not a whole number"),
    ],
)
def test_bad_arguments_are_one_line(
    hyphens: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(hyphens) if argument == "RUN" else argument for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert ".." not in line


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 3000 + "b", "log.csv/below", "nul\0byte"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["recommend", "NAME"],
        ["evaluate", "NAME"],
        ["similar", "NAME", "i"],
        ["inspect", "NAME"],
        ["inspect", "log.csv", "--json", "NAME"],
        ["fit", "log.csv", "--out", "NAME", "--model", "markov"],
        ["compare", "log.csv", "--models", "markov", "--out", "NAME"],
        ["recommend", "RUN", "--out", "NAME.csv"],
        ["recommend", "RUN", "--users-file", "NAME"],
    ],
)
def test_paths_that_no_system_takes_are_one_line(
    hyphens: Path,
    arguments: list[str],
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [(u, (u + i) % 7, i) for u in range(9) for i in range(5)]
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv("log.csv")
    given = [part.replace("NAME", name).replace("RUN", str(hyphens)) for part in arguments]
    assert main(given) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert len(errors) == 1
    assert "fault of seqrec" not in errors[0]


def test_whole_numbers_may_be_written_with_a_point(hyphens: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", str(hyphens), "--users", "-Usr1", "-k", "2.0", "--format", "csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.fixture
def escapes(tmp_path: Path) -> Path:
    """A run with control characters in its ids."""
    rows = [(f"u{u}{CLEAR}", f"i{(u + i) % 7}{CLEAR}", i) for u in range(9) for i in range(5)]
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    Recommender("markov").fit(log, tmp_path / "run")
    log.write_csv(tmp_path / "log.csv")
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        ["recommend", "run", "-k", "2"],
        ["recommend", "run", "--users", f"nobody{CLEAR}", "-k", "1"],
        ["recommend", "run", "--users", f"nobody{CLEAR}", "--strict"],
        ["recommend", "run", "--history", f"nothing{CLEAR}", "-k", "1"],
        ["recommend", f"no{CLEAR}run"],
        ["inspect", f"no{CLEAR}log.csv"],
        ["inspect", "log.csv", "--user", f"no{CLEAR}column"],
        ["similar", "run", f"i{CLEAR}"],
        ["fit", "log.csv", "--out", "new", "--model", f"no{CLEAR}model"],
        ["evaluate", "run"],
    ],
)
def test_nothing_in_an_id_reaches_the_terminal(
    escapes: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(escapes)
    assert main(arguments) in (0, 2)
    shown = "".join(capsys.readouterr())
    assert shown
    assert "\x1b" not in shown


@pytest.mark.slow
def test_a_real_terminal_gets_colours_and_nothing_of_an_id(escapes: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "seqrec.cli", "recommend", "run", "-k", "2"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200"}
    child = subprocess.Popen(command, cwd=escapes, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # Linux raises an error when the other side of a terminal is closed
        while part := os.read(ours, 65536):
            shown += part
    os.close(ours)
    assert child.wait(timeout=60) == 0
    assert b"\x1b[" in shown
    assert b"\x1b]" not in shown
    assert b"\x1b[2J" not in shown


def test_files_keep_ids_as_they_are(escapes: Path) -> None:
    for ending in ("csv", "jsonl", "parquet"):
        out = escapes / f"found.{ending}"
        assert main(["recommend", str(escapes / "run"), "-k", "1", "--out", str(out)]) == 0
        readers = {"csv": pl.read_csv, "jsonl": pl.read_ndjson, "parquet": pl.read_parquet}
        assert set(readers[ending](out)["user_id"]) == {f"u{u}{CLEAR}" for u in range(9)}


class Panic(BaseException):
    """Like polars' panics, which are not Exceptions."""


def test_a_fault_of_the_package_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for error in (TypeError("unhashable type\nsecond line"), RuntimeError("frame #0"), Panic("index out of bounds")):

        def broken(arguments: list[str], error: BaseException = error) -> int:
            raise error

        monkeypatch.setattr(app, "_run", broken)
        assert main(["inspect", "x"]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: this is a bug in seqrec, not in your input: {type(error).__name__}")
        assert "SEQREC_TRACEBACK=1" in line
    monkeypatch.setenv("SEQREC_TRACEBACK", "1")
    assert main(["inspect", "x"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "raised", [TypeError("'<unprintable str object>' is not a Polars data type"), Panic("in import")]
)
def test_a_stop_that_a_library_swallows_is_a_stop(
    raised: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def swallowed(arguments: list[str]) -> int:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            signal.pause()
        except KeyboardInterrupt:
            raise raised from None
        return 0

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(app, "_run", swallowed)
    assert main(["inspect", "x"]) == 130
    assert capsys.readouterr().err == "stopped\n"
    assert signal.getsignal(signal.SIGINT) is before


def test_a_stop_where_nothing_can_catch_it_is_a_stop(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Callback:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            signal.pause()

    def swallowed(arguments: list[str]) -> int:
        callback = Callback()
        del callback  # Python can only print what is raised here
        while True:
            time.sleep(0.01)

    hook = sys.unraisablehook
    monkeypatch.setattr(app, "_run", swallowed)
    assert main(["inspect", "x"]) == 130
    assert capsys.readouterr().err == "stopped\n"
    assert sys.unraisablehook is hook


@pytest.mark.parametrize(("name", "kept"), [(None, "1000"), ("GOMP_SPINCOUNT", "7"), ("OMP_WAIT_POLICY", None)])
def test_threads_wait_briefly_unless_the_user_settles_that(
    monkeypatch: pytest.MonkeyPatch, name: str | None, kept: str | None
) -> None:
    for variable in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(variable, "")  # so that they are restored
        monkeypatch.delenv(variable)
    if name is not None:
        monkeypatch.setenv(name, "7")
    assert main(["--version"]) == 0
    assert os.environ.get("GOMP_SPINCOUNT") == ("7" if name == "GOMP_SPINCOUNT" else None)  # a program's own affair
    monkeypatch.setattr(sys, "argv", ["seqrec", "--version"])
    assert main() == 0
    assert os.environ.get("GOMP_SPINCOUNT") == kept
