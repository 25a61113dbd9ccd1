"""The wheel, installed without the checkout, and the public names of the package."""

import email
import importlib
import importlib.metadata
import inspect
import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import polars as pl
import pytest

import seqrec
from seqrec.kernels.loader import name_of

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Installed:
    """A virtual environment with the wheel, and an empty folder to run in."""

    wheel: Path
    folder: Path
    site_packages: Path
    home: Path
    work: Path

    def run(self, *command: str) -> str:
        program = self.folder / "bin" / command[0]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "XDG_"))}
        environment |= {"HOME": str(self.home), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        done = subprocess.run(
            [program, *command[1:]], cwd=self.work, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout


def compiled_before(folder: Path) -> dict[str, str]:
    """Take the compiled loops that installing this checkout made, instead of compiling them again for a minute.

    What the wheel holds does not depend on it, and ``make release`` compiles.
    """
    if not list((ROOT / "src/seqrec/kernels").glob("*.so.1")):
        return {}
    script = folder / "compiler"
    script.write_text(
        f'''#!/bin/sh
while [ "$1" != -o ]; do shift; done
exec cp "{ROOT}/src/seqrec/kernels/$(basename "$2")" "$2"
'''
    )
    script.chmod(0o755)
    return {"CXX": str(script)}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    root = tmp_path_factory.mktemp("package")
    # A copy, because a build replaces the compiled loops beside the sources, which other tests use meanwhile.
    checkout = root / "checkout"
    left = shutil.ignore_patterns(
        ".git", ".venv*", ".*_cache", "*.so.1", "__pycache__", "build", "dist", "runs", "site"
    )
    shutil.copytree(ROOT, checkout, ignore=left)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-cache-dir", "--wheel-dir", str(root), str(checkout)]
    subprocess.run([*pip, *build], check=True, env=os.environ | compiled_before(root))
    (wheel,) = root.glob("*.whl")
    folder = root / "venv"
    venv.EnvBuilder(symlinks=True, with_pip=False).create(folder)
    python = folder / "bin" / "python"
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)], check=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    # The dependencies are those of this environment. Python ignores .pth files in a folder that a .pth line adds, so
    # the editable seqrec of this environment is not imported.
    dependencies = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    (site_packages / "dependencies.pth").write_text("\n".join(dependencies))
    (root / "home").mkdir()
    (root / "work").mkdir()
    return Installed(wheel, folder, site_packages, root / "home", root / "work")


@pytest.fixture(scope="module")
def contents(installed: Installed) -> dict[str, bytes]:
    with zipfile.ZipFile(installed.wheel) as wheel:
        return {name: wheel.read(name) for name in wheel.namelist()}


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(contents: dict[str, bytes]) -> None:
    source = ROOT / "src"
    expected = {path.relative_to(source).as_posix() for path in source.rglob("*.py")}
    expected |= {path.relative_to(source).as_posix() for path in source.glob("seqrec/kernels/*.[ch]*")}  # .cpp and .h
    for places in ("seqrec/report/*.css", "seqrec/serve/static/*"):
        expected |= {path.relative_to(source).as_posix() for path in source.glob(places)}
    built = {path.relative_to(source).as_posix() for path in source.glob("seqrec/kernels/*.so.1")}
    assert f"seqrec/kernels/{name_of('plain')}" in built
    expected |= built | {"seqrec/py.typed"}
    packed = {name for name in contents if ".dist-info/" not in name}
    assert packed == expected
    info = {name.partition(".dist-info/")[2] for name in contents if ".dist-info/" in name}
    assert {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"} == info


@pytest.mark.slow
def test_metadata(contents: dict[str, bytes]) -> None:
    (name,) = (name for name in contents if name.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(contents[name])
    assert metadata["Name"] == "seqrec"
    assert metadata["Version"] == seqrec.__version__ == importlib.metadata.version("seqrec")
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert "torch>=2.6" in metadata.get_all("Requires-Dist", [])
    assert metadata.get_payload(), "the README is missing"


@pytest.mark.slow
def test_import_is_light_and_leaves_nothing(installed: Installed) -> None:
    code = """
import sys
import seqrec, torch
heavy = {"pandas", "matplotlib.pyplot", "seqrec.cli"} & set(sys.modules)
print(seqrec.__file__, *heavy, *(["CUDA was started"] if torch.cuda.is_initialized() else []), sep="\\n")
"""
    where, *heavy = installed.run("python", "-c", code).splitlines()
    assert Path(where).parent == installed.site_packages / "seqrec", "this is another seqrec than the wheel's"
    assert not heavy
    assert not list(installed.work.iterdir())
    assert not list(installed.home.iterdir())


@pytest.mark.slow
def test_commands_work_without_the_checkout(installed: Installed) -> None:
    assert installed.run("seqrec", "--version").strip() == seqrec.__version__
    rows = [f"u{user},i{(user + step) % 12},{1000 + step}" for user in range(20) for step in range(6)]
    (installed.work / "log.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows, ""]))
    installed.run("seqrec", "fit", "log.csv", "--out", "run", "--epochs", "1", "--embedding-dim", "8")
    installed.run("seqrec", "evaluate", "run", "--json", "found.json")
    found = json.loads((installed.work / "found.json").read_text())
    assert found["users"] == 20
    assert 0 <= found["metrics"]["ndcg@10"] <= 1
    counted = {"popularity", "recent-popularity", "markov", "transitions"}
    assert set(found["baselines"]) - {"sasrec"} == counted  # sasrec if counts are added to it
    installed.run("seqrec", "recommend", "run", "--users", "u3", "-k", "2", "--format", "csv", "--out", "best.csv")
    best = pl.read_csv(installed.work / "best.csv")
    assert best["user_id"].to_list() == ["u3", "u3"]
    assert best["rank"].to_list() == [1, 2]
    assert not set(best["item_id"]) & {f"i{3 + step}" for step in range(6)}


def _sort_key(name: str) -> tuple[int, list[object]]:
    """The order of ruff (RUF022): CONSTANTS, Classes, others; numbers within a name by value."""
    kind = 0 if name.isupper() else 1 if name[0].isupper() else 2
    return kind, [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def test_public_names_are_sorted() -> None:
    assert sorted(seqrec.__all__, key=_sort_key) == seqrec.__all__
    assert len(set(seqrec.__all__)) == len(seqrec.__all__)


@pytest.mark.parametrize("name", seqrec.__all__)
def test_public_name_is_there_and_explained(name: str) -> None:
    value = getattr(seqrec, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert value.__module__.startswith("seqrec.")
        assert _explained(value)


def test_nothing_public_is_left_out() -> None:
    assert set(seqrec.__all__) <= set(dir(seqrec))
    public = {name for name, value in vars(seqrec).items() if name[0] != "_" and not isinstance(value, ModuleType)}
    assert public - {"TYPE_CHECKING"} <= set(seqrec.__all__)


MODULES = sorted(module.name for module in pkgutil.walk_packages(seqrec.__path__, "seqrec."))


@pytest.mark.parametrize("module", MODULES)
def test_public_functions_and_classes_have_docstrings(module: str) -> None:
    loaded = importlib.import_module(module)
    source = inspect.getsource(loaded)
    assert loaded.__doc__ or not source.strip()
    assert not [name for name, value in _defined_in(loaded, module) if not _explained(value)]


def _defined_in(owner: object, module: str) -> Iterator[tuple[str, object]]:
    """Public functions, classes, methods and properties whose code is in the module."""
    for name, value in vars(owner).items():
        plain = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        plain = getattr(plain, "func", plain)  # cached_property
        if name.startswith("_") or getattr(plain, "__module__", None) != module:
            continue
        if inspect.isclass(plain):
            yield name, plain
            yield from ((f"{name}.{inner}", found) for inner, found in _defined_in(plain, module))
        elif inspect.isfunction(plain):
            yield name, plain


def _explained(value: object) -> bool:
    """A docstring from the source; dataclasses generate one from their signature."""
    text = (value.__doc__ or "").strip()
    return bool(text) and not text.startswith(f"{getattr(value, '__name__', '')}(")
