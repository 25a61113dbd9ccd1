"""Lazy imports, and Ctrl-C during them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pydantic
import pytest

from seqrec.cli.parser import parsed

HEAVY = {"torch", "polars", "numpy", "matplotlib", "pyarrow"}


def imported(code: str) -> set[str]:
    """The slow libraries that a new process has loaded after running some code."""
    script = f"import sys\n{code}\nprint(*({HEAVY!r} & sys.modules.keys()), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.slow_but_one
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import seqrec; dir(seqrec); seqrec.InputError('x')", set()),
        ("from seqrec.cli.app import main; main(['--help']); main(['--version'])", set()),
        ("from seqrec.cli.app import main; main(['recommend', '--help'])", {"polars", "numpy"}),
        ("from seqrec.cli.app import main; main(['compare', '--help'])", {"polars", "numpy"}),
        ("from seqrec.cli.app import main; main(['bench', '--help'])", {"polars", "numpy"}),
        ("from seqrec.cli.app import main; assert main(['inspect', 'LOG']) == 0", {"polars", "numpy"}),
    ],
)
def test_nothing_is_imported_before_it_is_needed(code: str, expected: set[str], tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("user,item,time\n" + "".join(f"{u},{i},{i}\n" for u in range(5) for i in range(4)))
    assert imported(code.replace("LOG", str(log))) <= expected


#: Sends the signal at the first import of a slow library, as an impatient user would.
INTERRUPT = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {library!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
from seqrec.cli.app import main
sys.exit(main({arguments!r}))
"""


@pytest.mark.slow_but_one
@pytest.mark.parametrize(
    ("library", "arguments"),
    [
        ("cyclopts", ["--help"]),
        ("rich.console", ["--help"]),
        ("seqrec.cli.commands", ["inspect", "--help"]),
        ("polars", ["inspect", "log.csv"]),
        ("torch", ["fit", "log.csv", "--out", "run"]),
        ("seqrec.models.sasrec", ["fit", "log.csv", "--out", "run"]),
    ],
)
def test_ctrl_c_during_an_import_is_one_line(library: str, arguments: list[str]) -> None:
    script = INTERRUPT.format(library=library, arguments=arguments)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped\n")


def test_ctrl_c_from_outside_while_it_starts(tmp_path: Path) -> None:
    # The process reports its start, and is stopped somewhere in the imports that follow.
    script = "import sys; from seqrec.cli.app import main; print('begun', flush=True); sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", script, "fit", "log.csv", "--out", "run"]
    child = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "begun\n"
    time.sleep(0.3)
    os.kill(child.pid, signal.SIGINT)
    out, error = child.communicate(timeout=60)
    assert (child.returncode, out, error) == (130, "", "stopped\n")
    assert not list(tmp_path.iterdir())


def test_options_are_read_the_same_beside_pydantic() -> None:
    """cyclopts checks values with pydantic if that is imported, as in a program that also serves."""
    assert pydantic.__name__ in sys.modules
    _, computes = parsed(["inspect", "log.csv", "--min-user-interactions", "3"])
    assert not computes
    _, computes = parsed(["fit", "log.csv", "--out", "run", "--embedding-dim", "8", "--split", "time"])
    assert computes
