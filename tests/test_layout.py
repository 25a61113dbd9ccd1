"""DESIGN's rules about files and imports, read from the source without running it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import seqrec

SOURCE = Path(seqrec.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

DATA = {
    f"data.{name}"
    for name in ("source", "text", "read", "fetch", "prepare", "split", "batches", "negatives", "synthetic")
}
BELOW_TRAIN = {*DATA, "models", "metrics", "losses", "objective", "optim", "topk", "evaluate", "run"}
BELOW_FACE = {*BELOW_TRAIN, "train"}

# What each module may import of the package, besides ``errors`` and ``files``, which all may. A folder
# stands for all its modules; a module that is not here needs a line, after a look at DESIGN.md.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "files": set(),
    "kernels": {"kernels"},
    "threads": set(),
    "losses": {"kernels"},
    "metrics": set(),
    "optim": {"kernels"},
    "data": set(),
    "data.source": set(),
    "data.text": {"data.source"},
    "data.read": {"data.source", "data.text"},
    "data.fetch": set(),
    "data.negatives": set(),
    "data.synthetic": set(),
    "data.prepare": {"data.read"},
    "data.split": {"data.prepare"},
    "data.batches": {"data.prepare", "data.split"},
    "models.blocks": {"data.batches", "kernels"},
    "models.base": {"data.batches", "data.split", "kernels"},
    "models": {"models"},
    "topk": {*DATA, "models", "kernels"},
    "run": {*DATA, "models"},
    "evaluate": {*DATA, "models", "topk", "metrics", "kernels"},
    "objective": {*DATA, "models", "losses"},
    "averaging": {"run"},
    "train": {*BELOW_TRAIN, "averaging", "kernels", "threads"},
    "recommender": {*BELOW_FACE, "threads"},
    "export": {*BELOW_FACE, "recommender"},
    "report": {*BELOW_FACE, "recommender"},
    "compare": {*BELOW_FACE, "recommender", "report"},
    "bench": {*BELOW_FACE, "kernels", "recommender", "report"},
    "demo": {*BELOW_FACE, "recommender", "report"},
    "serve": {*BELOW_FACE, "recommender", "export", "report", "serve"},
    "cluster": {*BELOW_FACE, "recommender", "export", "report", "cluster"},
}
A_MODEL = {
    "kernels",
    "data.batches",
    "data.split",
    "models.base",
    "models.blocks",
}  # and other models, for what they share
TOP = {"", "cli", "__main__"}  # the package itself and the command line see everything


def module_of(file: Path) -> str:
    parts = file.relative_to(SOURCE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_of(file): file for file in FILES}


def imports_of(module: str, text: str) -> set[str]:
    """Modules of the package that a file imports anywhere, inside functions too."""
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
                # ``from seqrec import metrics`` names a module, ``from seqrec.topk import best`` does not.
                whole = f"{base}.{alias.name}"
                found.add(whole if whole.removeprefix("seqrec.") in MODULES else base)
    return {
        name.removeprefix("seqrec").removeprefix(".")
        for name in found
        if name == "seqrec" or name.startswith("seqrec.")
    }


def allowed_for(module: str) -> set[str]:
    if module in ALLOWED:
        return ALLOWED[module]
    folder = module.split(".")[0]
    if folder == "models":
        return A_MODEL | {name for name in MODULES if name.startswith("models.")}
    assert folder in ALLOWED, f"{module} has no place in ALLOWED"
    assert folder != "data", f"{module} has no place in ALLOWED"
    return ALLOWED[folder]


def offences(module: str, text: str) -> set[str]:
    allowed = allowed_for(module)
    free = {"errors"} if module == "files" else set() if module == "errors" else {"errors", "files"}
    return {
        name
        for name in imports_of(module, text)
        if name not in allowed | free and not any(name.startswith(f"{folder}.") for folder in allowed)
    }


@pytest.mark.parametrize("module", sorted(set(MODULES) - TOP))
def test_imports_point_down(module):
    assert offences(module, MODULES[module].read_text()) == set()


def test_the_package_itself_does_not_import_the_top():
    imported = imports_of("", MODULES[""].read_text())
    assert not imported & {"cli", "demo"}
    assert not any(name.startswith(("serve", "cluster")) for name in imported)


@pytest.mark.parametrize(
    ("module", "text", "expected"),
    [
        ("losses", "from seqrec.data.batches import Batch", {"data.batches"}),
        ("losses", "def f():\n    import seqrec.train", {"train"}),
        ("losses", "import seqrec", {""}),
        ("losses", "from seqrec import optim", {"optim"}),
        ("losses", "from . import optim", {"optim"}),
        ("data.split", "from ..models.base import Model", {"models.base"}),
        ("data.split", "from .batches import pack", {"data.batches"}),
        ("data.split", "from .prepare import Dataset\nfrom seqrec.errors import InputError", set()),
        ("models.sasrec", "from seqrec.models import MODELS", {"models"}),
        ("models.sasrec", "from seqrec.models.blocks import Dropout", set()),
        ("topk", "from seqrec.models.base import Model\nimport seqrec.data.split", set()),
        ("topk", "from seqrec.evaluate import ranks", {"evaluate"}),
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
    assert len(MODULES[module].read_text().splitlines()) <= 500


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_module_has_a_docstring(module):
    tree = ast.parse(MODULES[module].read_text())
    if module == "data" and not tree.body:
        return  # an empty file that only makes the folder a package
    assert ast.get_docstring(tree)


def runs_at_import(tree: ast.Module) -> list[str]:
    """Statements at the top of a module that are more than imports, definitions and names of values."""
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
    extras = "{'fastapi', 'onnx', 'onnxruntime', 'ray', 'redis', 'uvicorn', 'seqrec.cli'}"
    script = f"import seqrec, sys; print(sorted({extras} & {{*sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_public_names_are_sorted_and_there():
    names = seqrec.__all__
    # In ruff's order: CONSTANTS, Classes, functions.
    assert names == sorted(set(names), key=lambda name: (not name.isupper(), name[0].islower(), name))
    assert all(hasattr(seqrec, name) for name in names)
    public = {
        alias.asname or alias.name
        for node in ast.parse(MODULES[""].read_text()).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert {name for name in public if not name.startswith("_")} == {n for n in names if not n.startswith("_")}
