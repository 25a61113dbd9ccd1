"""DESIGN's rules about files and imports, read from the source without running it."""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import seqrec

SOURCE = Path(seqrec.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

# The order of DESIGN.md, lowest first: a module may import the modules before it and those in its own folder. A new
# module needs a line here; see DESIGN.md.
LEVELS: list[set[str]] = [
    {"errors"},
    {"files", "device"},
    {"kernels"},
    {"data"},
    {"models"},
    {"ranking", "run"},
    {"predictor", "training"},
    {"answering"},
    {"recommender"},
    {"report", "export"},
    {"serve", "cluster", "tools"},
    {"cli"},
    {"__main__"},
]
#: Modules that must not import some others: a loss never sees a trainer, a metric never sees a model.
NARROW: dict[str, set[str]] = {
    "training.losses": {"kernels"},
    "training.drift": {"device", "kernels"},
    "training.rows": {"kernels"},
    "training.optim": {"device", "kernels", "training.drift", "training.rows"},
    "ranking.metrics": set(),
    "ranking.statistics": {"ranking.metrics"},
    "data.draws": set(),
    "data.negatives": {"data.draws"},
    "data.synthetic": set(),
    "data.formats": {"data.formats", "device"},
}
TOP = {""}  # the package itself may import everything


def module_of(file: Path) -> str:
    parts = file.relative_to(SOURCE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_of(file): file for file in FILES}
parsed = functools.cache(ast.parse)


@pytest.fixture(scope="module", autouse=True)
def _forget_the_trees() -> Iterator[None]:
    yield
    parsed.cache_clear()


def text_of(module: str) -> str:
    return MODULES[module].read_text(encoding="utf-8")


def imports_of(module: str, text: str) -> set[str]:
    """Modules of the package that a file imports, including imports inside functions."""
    is_package = MODULES.get(module, Path()).name == "__init__.py"
    found = set()
    for node in ast.walk(parsed(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = ["seqrec", *filter(None, module.split("."))]
                up = node.level - 1 if is_package else node.level
                base = ".".join([*here[: len(here) - up], *filter(None, [base])])
            for alias in node.names:
                # ``from seqrec.ranking import metrics`` names a module, ``from seqrec.data import Batch`` not.
                whole = f"{base}.{alias.name}"
                found.add(whole if whole.removeprefix("seqrec.") in MODULES else base)
    return {
        name.removeprefix("seqrec").removeprefix(".")
        for name in found
        if name == "seqrec" or name.startswith("seqrec.")
    }


def level_of(module: str) -> int:
    folder = module.split(".")[0]
    levels = [number for number, folders in enumerate(LEVELS) if folder in folders]
    assert levels, f"{module} has no place in LEVELS"
    return levels[0]


def may_import(module: str, other: str) -> bool:
    if other == "":
        return module in ("cli.app", "cli.parser", "export.write", "training.tracking")  # show or write the version
    if other in ("errors", "files"):
        return level_of(other) < level_of(module)
    for name, allowed in NARROW.items():
        if module == name or module.startswith(f"{name}."):
            return any(other == low or other.startswith(f"{low}.") for low in allowed)
    same_folder = module.split(".")[0] == other.split(".")[0]
    return same_folder or level_of(other) < level_of(module)


def offences(module: str, text: str) -> set[str]:
    return {name for name in imports_of(module, text) if not may_import(module, name)}


def test_imports_point_down():
    found = {module: offences(module, text_of(module)) for module in sorted(set(MODULES) - TOP)}
    assert {module: names for module, names in found.items() if names} == {}


def test_the_package_itself_does_not_import_the_top():
    imported = imports_of("", text_of(""))
    assert not any(name.startswith(("cli", "serve", "cluster", "tools", "report")) for name in imported)


@pytest.mark.parametrize(
    ("module", "text", "expected"),
    [
        ("training.losses", "from seqrec.data.batches import Batch", {"data.batches"}),
        ("training.losses", "def f():\n    import seqrec.training.loop", {"training.loop"}),
        ("training.losses", "import seqrec", {""}),
        ("training.losses", "from seqrec.training import optim", {"training.optim"}),
        ("training.losses", "from . import optim", {"training.optim"}),
        ("data.split", "from ..models.base import Model", {"models.base"}),
        ("data.split", "from .dataset import Dataset\nfrom seqrec.errors import InputError", set()),
        ("data.formats.read", "from seqrec.data.prepare import prepare", {"data.prepare"}),
        ("models.sasrec", "from seqrec.models.blocks import Dropout", set()),
        ("models.sasrec", "from seqrec.training.losses import cross_entropy", {"training.losses"}),
        ("ranking.topk", "from seqrec.models.base import Model\nimport seqrec.data.split", set()),
        ("ranking.topk", "from seqrec.run import Run", {"run"}),
        ("ranking.metrics", "from seqrec.ranking.protocols import ranks", {"ranking.protocols"}),
        ("errors", "from seqrec.files import sync", {"files"}),
        ("files", "from seqrec.errors import InputError", set()),
    ],
)
def test_the_rule_finds_offences(module, text, expected):
    assert offences(module, text) == expected


def test_no_import_goes_round_in_circles():
    graph = {module: imports_of(module, text_of(module)) - {module} for module in MODULES}
    graph.pop("")
    while graph:
        leaves = [module for module, imported in graph.items() if not imported & set(graph)]
        assert leaves, f"a circle among {sorted(graph)}"
        for module in leaves:
            del graph[module]


def test_no_file_is_long():
    lengths = {module: len(text_of(module).splitlines()) for module in MODULES}
    assert {module: length for module, length in lengths.items() if length > 400} == {}


def test_every_module_has_a_docstring():
    assert [module for module in MODULES if not ast.get_docstring(parsed(text_of(module)))] == []


def runs_at_import(tree: ast.Module) -> list[str]:
    """Statements at the top level of a module other than imports, definitions and assignments."""
    plain = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    values = (ast.Assign, ast.AnnAssign, ast.AugAssign)
    found = []
    for number, node in enumerate(tree.body):
        docstring = number == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        only_if = isinstance(node, ast.If) and ast.unparse(node.test) in (
            "TYPE_CHECKING",
            "__name__ == '__main__'",
        )
        if not (docstring or only_if or isinstance(node, (*plain, *values))):
            found.append(ast.unparse(node).splitlines()[0])
    return found


def test_nothing_runs_at_import():
    found = {module: runs_at_import(parsed(text_of(module))) for module in MODULES}
    assert {module: lines for module, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "text", ["print()", "torch.manual_seed(0)", "for x in y: pass", "if a: b = 1", "with x: y = 1"]
)
def test_the_rule_finds_what_runs(text):
    assert runs_at_import(ast.parse(f'"""A docstring."""\nimport torch\n{text}')) != []


def test_importing_is_quiet_and_needs_no_extra():
    extras = "{'fastapi', 'mlflow', 'onnx', 'onnxruntime', 'optuna', 'ray', 'redis', 'tensorboard', 'uvicorn', "
    extras += "'seqrec.cli'}"
    script = f"import seqrec, sys; print(sorted({extras} & {{*sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_public_names_are_sorted_and_there():
    names = seqrec.__all__
    # In ruff's order: CONSTANTS, Classes, functions.
    assert names == sorted(set(names), key=lambda name: (not name.isupper(), name[0].islower(), name))
    assert all(hasattr(seqrec, name) for name in names)
    imports = [node for node in ast.walk(parsed(text_of(""))) if isinstance(node, ast.ImportFrom)]
    typed = {alias.name: node.module for node in imports for alias in node.names if "seqrec" in (node.module or "")}
    assert sorted(typed) == sorted(names) == sorted(seqrec._MODULES)
    assert typed == {name: f"seqrec.{module}" for name, module in seqrec._MODULES.items()}


def test_no_function_has_the_name_of_its_module() -> None:
    allowed = {"prepare", "fetch"}  # public functions of modules that DESIGN.md names
    found = {
        node.name
        for module in MODULES
        for node in parsed(text_of(module)).body
        if isinstance(node, ast.FunctionDef) and node.name == module.rpartition(".")[2]
    }
    assert found == allowed


def test_functions_fit_on_a_screen() -> None:
    long = [
        f"{module}.{node.name}"
        for module in MODULES
        for node in ast.walk(parsed(text_of(module)))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno >= 60
    ]
    assert long == []
