"""Build the compiled loops differently from pip, and run their tests on that build.

``sanitize`` builds those for this processor with AddressSanitizer and UndefinedBehaviorSanitizer. ``clang`` builds the
library for any processor with clang++ and without OpenMP, as on a machine that has no GCC.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import torch

from seqrec.kernels.loader import RUNS

ROOT = Path(__file__).parents[2]
SANITIZERS = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]


def build_hook() -> ModuleType:
    """Import hatch_build.py, which is outside the package."""
    specification = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert specification is not None
    assert specification.loader is not None
    hook = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(hook)
    return hook


def library_of(compiler: str, name: str) -> str:
    """The path of one of the compiler's libraries."""
    done = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def prepared(way: str, hook: ModuleType) -> dict[str, str]:
    """Set up the hook for this kind of build, and return the environment variables that the tests need."""
    if way == "clang":
        os.environ["CXX"] = "clang++"
        hook.PROCESSORS = {"plain": []}
        hook.THREADS = [["-fopenmp-simd"]]
        return {"ATEN_CPU_CAPABILITY": "default"}
    hook.FLAGS = [*hook.FLAGS, *SANITIZERS]
    runs = RUNS.get(torch.backends.cpu.get_cpu_capability(), ("plain",))[0]
    hook.PROCESSORS = {runs: hook.PROCESSORS[runs]}
    compiler = os.environ.setdefault("CXX", "g++")
    return {
        "LD_PRELOAD": f"{library_of(compiler, 'libasan.so')} {library_of(compiler, 'libubsan.so')}",
        "ASAN_OPTIONS": "detect_leaks=0:detect_odr_violation=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def main() -> int:
    """Build into a copy of the package, then test that copy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("way", choices=["sanitize", "clang"])
    way = parser.parse_args().way
    if way == "clang" and shutil.which("clang++") is None:
        sys.exit("clang++ is not installed; on Debian, run apt-get install clang")
    hook = build_hook()
    needed = prepared(way, hook)
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "seqrec"
        shutil.copytree(ROOT / "src" / "seqrec", copy, ignore=shutil.ignore_patterns("*.so.1", "__pycache__"))
        reasons = hook.compile_kernels(copy / "kernels", copy / "kernels")
        if any(reasons.values()):
            sys.exit(f"the compiled loops could not be built: {reasons}")
        environment = os.environ | needed | {"PYTHONPATH": name}
        tests = [str(path) for path in sorted(Path(__file__).parent.glob("test_*.py")) if path.stem != "test_loader"]
        found = "from seqrec.kernels import library; print('tested:', library())"
        subprocess.run([sys.executable, "-c", found], env=environment, cwd=name, check=True)
        # A sanitizer's report ends the process; with --capture=sys pytest does not swallow it.
        command = [sys.executable, "-m", "pytest", "-n", "auto", "--capture=sys", *tests]
        return subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
