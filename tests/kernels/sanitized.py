"""Build the compiled loops with AddressSanitizer and UndefinedBehaviorSanitizer, and run their tests on that build."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
SANITIZERS = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]


def library_of(compiler: str, name: str) -> str:
    done = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def main() -> int:
    specification = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert specification is not None
    assert specification.loader is not None
    hook = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(hook)
    hook.FLAGS = [*hook.FLAGS, *SANITIZERS]
    compiler = os.environ.get("CXX", "g++")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ignored = shutil.ignore_patterns("*.so.1", "__pycache__")
        shutil.copytree(ROOT / "src" / "seqrec", folder / "seqrec", ignore=ignored)
        reasons = hook.compile_kernels(ROOT / "src" / "seqrec" / "kernels", folder / "seqrec" / "kernels")
        if any(reasons.values()):
            sys.exit(str(reasons))
        environment = os.environ | {
            "PYTHONPATH": name,
            "LD_PRELOAD": f"{library_of(compiler, 'libasan.so')} {library_of(compiler, 'libubsan.so')}",
            "ASAN_OPTIONS": "detect_leaks=0:detect_odr_violation=0",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        }
        tests = [str(path) for path in sorted(Path(__file__).parent.glob("test_*.py")) if path.stem != "test_loader"]
        command = [sys.executable, "-m", "pytest", *tests]
        return subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
