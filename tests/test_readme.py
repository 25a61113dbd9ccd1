"""The README and docs/: commands and snippets run; flags, paths, links and names exist."""

import importlib
import importlib.util
import random
import re
import shlex
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch

import seqrec
from seqrec.cli.app import main
from seqrec.cli.parser import COMMANDS, make_app
from seqrec.models import MODELS
from seqrec.report.svg import rendered

pytestmark = pytest.mark.usefixtures("few_constants")

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": ROOT / "README.md"} | {f"docs/{path.name}": path for path in sorted((ROOT / "docs").glob("*.md"))}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in PAGES.items()}
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str, text: str) -> list[str]:
    return [body for name, body in FENCE.findall(text) if name == language]


def commands(text: str) -> list[list[str]]:
    lines = "".join(blocks("sh", text)).replace("\\\n", " ").splitlines()
    return [parts for line in lines if (parts := shlex.split(line, comments=True))]


def with_block(*languages: str) -> list[str]:
    return [name for name, text in TEXTS.items() if any(blocks(language, text) for language in languages)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the pages mention: a log of walks around a ring of items, and an item table."""
    draw = random.Random(0)
    rows = []
    for user in range(1, 121):
        item, time = draw.randrange(50), 1_700_000_000 + draw.randrange(10**6)
        for _ in range(draw.randrange(5, 12)):
            rows.append((time, f"u{user}", f"i{item + 1}"))
            item = (item + 1) % 50 if draw.random() < 0.7 else draw.randrange(50)
            time += draw.randrange(60, 10_000)
    lines = [f"{user},{item},{time}" for time, user, item in sorted(rows)]
    folder = tmp_path_factory.mktemp("readme")
    (folder / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *lines, ""]))
    described = [f"i{item},Title {item},{'odd' if item % 2 else 'even'}" for item in range(1, 51)]
    (folder / "items.csv").write_text("\n".join(["item_id,title,categories", *described, ""]))
    return folder


def shortened(arguments: list[str]) -> list[str]:
    """A command that trains for one epoch only, instead of until validation no longer improves, and with two seeds."""
    if "--seeds" in arguments:
        place = arguments.index("--seeds")
        arguments = [*arguments[:place], "--seeds", "2", *arguments[place + 2 :]]
    if arguments[0] not in ("fit", "compare"):
        return arguments
    place = arguments.index("--epochs") if "--epochs" in arguments else len(arguments)
    return [*arguments[:place], "--epochs", "1", *arguments[place + 2 :]]


#: Pages that `make test` runs; `make test-slow` runs the others, which train more.
QUICK = {"README.md", "docs/quickstart.md"}


@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=[] if p in QUICK else pytest.mark.slow) for p in with_block("sh", "python")]
)
def test_what_a_page_shows_runs(
    page: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each page runs on its own: first its commands, then its snippets."""
    for name in ("interactions.csv", "items.csv"):
        shutil.copy(folder / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    # Drawing as PNG takes most of the time of a report.
    monkeypatch.setattr("seqrec.report.page.rendered", lambda picture, folder: rendered(picture, None))
    for name, *arguments in commands(TEXTS[page]):
        if name == "seqrec":
            assert main(shortened(arguments)) == 0, f"{shlex.join(arguments)}: {capsys.readouterr().err}"
    names: dict[str, object] = {"__name__": "page"}
    threads = torch.get_num_threads()
    try:
        for number, snippet in enumerate(blocks("python", TEXTS[page]), 1):
            exec(compile(snippet, f"{page}, Python block {number}", "exec"), names)
    finally:
        torch.set_num_threads(threads)  # which a server sets


def test_every_command_is_shown() -> None:
    shown = {parts[1] for text in TEXTS.values() for parts in commands(text) if parts[0] == "seqrec"}
    assert shown >= {"inspect", "fit", "evaluate", "recommend", "similar", "compare", "report"}


def test_the_files_of_a_run_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert main(["fit", "interactions.csv", "--out", "run", "--epochs", "1"]) == 0
    held = {path.name for path in (folder / "run").iterdir()}
    table = TEXTS["docs/runs.md"].partition("## What it holds")[2].partition("| in `data/`")[0]
    rows = re.findall(r"^\|([^|]*)\|", table, re.MULTILINE)
    assert held == set(re.findall(r"`([\w.]+)/?`", "".join(rows))), "the page tells of other files than there are"


@pytest.mark.parametrize("page", PAGES)
def test_fences_are_of_known_kinds(page: str) -> None:
    assert {name for name, _ in FENCE.findall(TEXTS[page])} <= {"sh", "python", "text"}, "this would not be tested"
    assert TEXTS[page].count("```") == 2 * len(FENCE.findall(TEXTS[page]))


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md"])
def test_make_targets_exist(page: str) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = (ROOT / page).read_text(encoding="utf-8")
    named = {parts[1] for parts in commands(text) if parts[0] == "make"} | set(re.findall(r"`make ([\w-]+)`", text))
    assert named <= targets


#: Flags of other programs, and of the scripts in benchmarks/.
OTHERS = {"--batch", "--recursive", "--measure-rows", "--zipf", "--lengths", "--disable-usage-stats", "--cv"}


def flags_of(command: str, model: str = "sasrec") -> set[str]:
    """The flags that the help of a command shows."""
    arguments = make_app(model)[command].assemble_argument_collection()
    return {name for argument in arguments if argument.show for name in argument.names}


def test_flags_exist() -> None:
    known = {"--help", "--version"}.union(*map(flags_of, COMMANDS), *(flags_of("fit", model) for model in MODELS))
    codes = [code for text in TEXTS.values() for code in re.findall(r"`([^`]+)`", FENCE.sub("", text))]
    named = {flag for code in codes for flag in re.findall(r"--[a-z][a-z0-9-]*", code)}
    assert len(named) > 15
    assert named - OTHERS <= known


def test_models_are_told() -> None:
    told = re.findall(r"^\| `([\w-]+)` \|", TEXTS["docs/models.md"], re.MULTILINE)
    assert sorted(told) == sorted(MODELS)


def test_public_names_are_in_the_reference() -> None:
    found = {}
    for page in PAGES:
        for path in re.findall(r"^::: ([\w.]+)$", TEXTS.get(page, ""), re.MULTILINE):
            module, _, name = path.rpartition(".")
            found[name] = getattr(importlib.import_module(module), name)
    for name in set(seqrec.__all__) - {"MODELS"}:
        assert found.get(name) is getattr(seqrec, name), f"seqrec.{name} is missing in docs/api*.md"


def hooks() -> ModuleType:
    specification = importlib.util.spec_from_file_location("docs_hooks", ROOT / "scripts" / "docs_hooks.py")
    assert specification is not None
    assert specification.loader is not None
    found = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(found)
    return found


def test_every_module_says_what_it_is_for() -> None:
    said = hooks().modules()
    assert {f"src/{path}" for path in said} == {p.relative_to(ROOT).as_posix() for p in (ROOT / "src").rglob("*.py")}
    assert not [path for path, line in said.items() if not line.endswith((".", "?"))]


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/RESULTS.md"])
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    files = [link.partition("#")[0] for link in links if "://" not in link and not link.startswith("#")]
    assert not [file for file in files if not ((ROOT / page).parent / file).exists()]


def test_every_page_is_in_the_navigation() -> None:
    named = re.findall(r"^ +- [^:]+: ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert {path.name for path in (ROOT / "docs").glob("*.md")} <= set(named)
