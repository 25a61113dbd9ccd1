"""Compiles the inner loops when the package is installed. Without a compiler the package also works, but slower."""

import os
import platform
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fno-math-errno", "-fno-trapping-math"]
#: Ways to compile the loops, tried in this order: with threads if the compiler has OpenMP, otherwise on one thread.
THREADS = [["-fopenmp"], ["-fopenmp-simd"], []]
#: One library per generation of processors. `seqrec.kernels.loader` loads the best one that the machine supports.
PROCESSORS = {"plain": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    avx2 = ["-mavx2", "-mfma"]
    wider = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
    PROCESSORS |= {"avx2": avx2, "avx512": [*avx2, *wider]}


class KernelsHook(BuildHookInterface):
    """Puts the libraries ``kernels-….so.1`` next to their sources."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        folder = Path(self.root) / "src" / "seqrec" / "kernels"
        for built in folder.glob("kernels-*.so.1"):  # from an earlier build
            built.unlink()
        reasons = compile_kernels(folder, folder)
        made = [processor for processor, reason in reasons.items() if not reason]
        for processor, reason in reasons.items():
            if reason:
                self.app.display_warning(f"seqrec works without its compiled loops for {processor}, slower: {reason}")
        if made:
            build_data["artifacts"] += [f"/src/seqrec/kernels/kernels-{processor}.so.1" for processor in made]
            build_data["pure_python"] = False
            tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{tag}"  # the libraries do not depend on the version of Python


def compile_kernels(folder: Path, target: Path) -> dict[str, str]:
    """Build every library from the sources in a folder. Returns for each the reason of failure, or an empty string."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if os.name != "posix" or compiler is None:
        return dict.fromkeys(PROCESSORS, "there is no C++ compiler (c++, g++, clang++ or the one that CXX names)")
    sources = sorted(folder.glob("*.cpp"))
    with ThreadPoolExecutor() as pool:
        results = {
            name: pool.submit(_compiled, shlex.split(compiler), flags, sources, target / f"kernels-{name}.so.1")
            for name, flags in PROCESSORS.items()
        }
    return {name: result.result() for name, result in results.items()}


def _compiled(compiler: list[str], flags: list[str], sources: list[Path], target: Path) -> str:
    reason = ""
    try:
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / target.name
            for threads in THREADS:
                command = [*compiler, *FLAGS, *flags, *threads, "-shared", "-o", str(made), *map(str, sources)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode == 0:
                    made.replace(target)
                    return ""
                said = done.stderr.strip().splitlines() or [f"{compiler[0]} failed"]
                reason = reason or next((line for line in said if "error" in line), said[0])
    except OSError as error:
        return str(error)
    return reason
