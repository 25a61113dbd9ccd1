"""Which compiled library is found, and when it is used."""

import ctypes
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from seqrec import kernels
from seqrec.models.blocks import FeedForward

ROOT = Path(__file__).parents[2]


@pytest.mark.loops
def test_they_are_built_here():
    # Otherwise the other tests would not test them.
    assert kernels.library() is not None


def test_autocast_goes_to_torch():
    layer = FeedForward(8, (8,), 0.0)
    x = torch.randn(100, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert not kernels.usable(x)
        assert (layer(x, x) - layer.float()(x, x)).abs().max() < 0.1


@pytest.mark.loops
def test_other_types_go_to_torch():
    assert kernels.usable(torch.zeros(1))
    assert not kernels.usable(torch.zeros(1), torch.zeros(1, dtype=torch.float64))
    assert not kernels.usable(torch.zeros(1, dtype=torch.bfloat16))
    assert not kernels.usable(torch.zeros(1, device="meta"))


def test_the_environment_turns_them_off(monkeypatch):
    found = kernels.library.__wrapped__  # without the cache, as in a new process
    for value, expected in (("0", True), ("1", False)):
        monkeypatch.setenv("SEQREC_KERNELS", value)
        assert (found() is None) == expected


def test_a_build_that_fails_says_why_and_leaves_nothing(tmp_path, monkeypatch):
    """With sources of a line, because tests/test_package.py builds those of the package."""
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    sources, target = tmp_path / "sources", tmp_path / "made"
    sources.mkdir()
    target.mkdir()
    (sources / "one.cpp").write_text('extern "C" int seqrec_one() { return 1; }')
    (sources / "two.cpp").write_text('extern "C" int seqrec_two() { return 2; }')
    monkeypatch.setenv("CXX", "false")
    assert set(hook.compile_kernels(sources, target).values()) == {"false failed"}
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert all("no-such-compiler" in reason for reason in hook.compile_kernels(sources, target).values())
    monkeypatch.delenv("CXX")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "broken.cpp").write_text("int f( {")
    assert all("error" in reason for reason in hook.compile_kernels(broken, target).values())
    assert not list(target.iterdir())
    assert set(hook.compile_kernels(sources, target).values()) == {""}
    assert {path.name for path in target.iterdir()} == {f"kernels-{name}.so.1" for name in hook.PROCESSORS}
    assert all(ctypes.CDLL(str(path)).seqrec_two() == 2 for path in target.iterdir())
    monkeypatch.setenv("PATH", "")
    assert all(reason.startswith("there is no C++") for reason in hook.compile_kernels(sources, target).values())


OLDER = {"AVX512": ["default", "avx2"], "AVX2": ["default"]}.get(torch.backends.cpu.get_cpu_capability(), [])


@pytest.mark.loops
@pytest.mark.parametrize("processor", OLDER)
@pytest.mark.slow
def test_older_processors_have_loops_of_their_own(processor):
    """The same tests, with a lower processor capability reported by torch."""
    folder = Path(__file__).parent
    tests = [str(folder / f"test_{name}.py") for name in ("layers", "block", "scores", "counts", "adam")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *tests],
        env=os.environ | {"ATEN_CPU_CAPABILITY": processor},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
