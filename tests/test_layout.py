"""DESIGN's rules about files and imports, read from the source without running it."""

import ast
import subprocess
import sys
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


def imports_of(module: str, text: str) -> set[str]:
    """Modules of the package that a file imports, including imports inside functions."""
    is_package = MODULES.get(module, Path()).name == "__init__.py"
    found = set()
    for node in ast.walk(ast.parse(text)):
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


@pytest.mark.parametrize("module", sorted(set(MODULES) - TOP))
def test_imports_point_down(module):
    assert offences(module, MODULES[module].read_text()) == set()


def test_the_package_itself_does_not_import_the_top():
    imported = imports_of("", MODULES[""].read_text())
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
    graph = {module: imports_of(module, file.read_text()) - {module} for module, file in MODULES.items()}
    graph.pop("")
    while graph:
        leaves = [module for module, imported in graph.items() if not imported & set(graph)]
        assert leaves, f"a circle among {sorted(graph)}"
        for module in leaves:
            del graph[module]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_file_is_long(module):
    assert len(MODULES[module].read_text().splitlines()) <= 400


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_module_has_a_docstring(module):
    tree = ast.parse(MODULES[module].read_text())
    assert ast.get_docstring(tree)


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


@pytest.mark.parametrize("module", sorted(MODULES))
def test_nothing_runs_at_import(module):
    assert runs_at_import(ast.parse(MODULES[module].read_text())) == []


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
    imports = [node for node in ast.walk(ast.parse(MODULES[""].read_text())) if isinstance(node, ast.ImportFrom)]
    typed = {alias.name: node.module for node in imports for alias in node.names if "seqrec" in (node.module or "")}
    assert sorted(typed) == sorted(names) == sorted(seqrec._MODULES)
    assert typed == {name: f"seqrec.{module}" for name, module in seqrec._MODULES.items()}


def test_no_function_has_the_name_of_its_module() -> None:
    allowed = {"prepare", "fetch"}  # public functions of modules that DESIGN.md names
    found = {
        node.name
        for module, file in MODULES.items()
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name == module.rpartition(".")[2]
    }
    assert found == allowed


def test_functions_fit_on_a_screen() -> None:
    long = [
        f"{module}.{node.name}"
        for module, file in MODULES.items()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno >= 60
    ]
    assert long == []
