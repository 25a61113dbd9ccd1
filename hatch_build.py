"""Compile the inner loops when the package is installed; without a compiler it works too, slower."""

import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fno-math-errno", "-fno-trapping-math"]


class KernelsHook(BuildHookInterface):
    """Puts ``kernels.so.1`` beside ``kernels.cpp`` and the other sources."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        folder = Path(self.root) / "src" / "seqrec"
        built = folder / "kernels.so.1"
        reason = compile_kernels(sorted(folder.glob("*.cpp")), built)
        if reason:
            built.unlink(missing_ok=True)  # of another version
            self.app.display_warning(f"seqrec works without its compiled inner loops, but slower: {reason}")
            return
        build_data["artifacts"].append("/src/seqrec/kernels.so.1")
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"  # a plain shared library, for any Python


def compile_kernels(sources: list[Path], target: Path) -> str:
    """Build ``target`` anew, whole or not at all; why that went wrong, or nothing."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if os.name != "posix" or compiler is None:
        return "there is no C++ compiler (c++, g++, clang++ or the one that CXX names)"
    try:
        return _compiled(shlex.split(compiler), sources, target)
    except OSError as error:
        return str(error)


def _compiled(compiler: list[str], sources: list[Path], target: Path) -> str:
    reason = ""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        for threads in (["-fopenmp"], ["-fopenmp-simd"], []):
            command = [*compiler, *FLAGS, *threads, "-shared", "-o", str(made), *map(str, sources)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                made.replace(target)
                return ""
            reason = reason or (done.stderr.strip().splitlines() or [f"{compiler[0]} failed"])[0]
    return reason
