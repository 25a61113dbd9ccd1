"""The README shows only what works: its commands and snippets are run, its flags, paths and links exist."""

import random
import re
import shlex
from pathlib import Path

import pytest

from seqrec.cli.app import main
from seqrec.models import MODELS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str, text: str = README) -> list[str]:
    return [body for name, body in FENCE.findall(text) if name == language]


def commands(text: str = README) -> list[list[str]]:
    lines = "".join(blocks("sh", text)).replace("\\\n", " ").splitlines()
    return [parts for line in lines if (parts := shlex.split(line, comments=True))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the log that the README speaks of: walks around a ring of items."""
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
    return folder


def test_commands_run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    ran = [parts[1:] for parts in commands() if parts[0] == "seqrec"]
    for arguments in ran:
        # The real ones train until it no longer helps, which is not what is tested here.
        short = ["--epochs", "2"] if arguments[0] == "fit" and "--epochs" not in arguments else []
        assert main([*arguments, *short]) == 0, f"{shlex.join(arguments)}: {capsys.readouterr().err}"
    assert {arguments[0] for arguments in ran} == {"inspect", "fit", "evaluate", "recommend", "similar", "compare"}
    assert (folder / "sampled.json").is_file()
    assert (folder / "recommendations.csv").is_file()
    held = {path.name for path in (folder / "runs" / "first").iterdir()}
    section = README.partition("### What a run folder holds")[2].partition("\n## ")[0]
    told = re.findall(r"`([\w.]+)/?`", "".join(re.findall(r"^\|([^|]*)\|", section, re.MULTILINE)))
    assert held == set(told), "the README tells of other files in a run folder than there are"


def test_snippets_run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, object] = {"__name__": "readme"}
    for number, snippet in enumerate(blocks("python"), 1):
        exec(compile(snippet, f"README.md, Python block {number}", "exec"), names)
    assert number >= 2
    assert "similar_item_id" in capsys.readouterr().out


def test_fences_are_of_known_kinds() -> None:
    kinds = {name for name, _ in FENCE.findall(README)}
    assert kinds == {"sh", "python", "text", "tree"}, "a block of another kind would not be tested"
    assert README.count("```") == 2 * len(FENCE.findall(README))


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_make_targets_exist(page: str) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = (ROOT / page).read_text(encoding="utf-8")
    named = {parts[1] for parts in commands(text) if parts[0] == "make"} | set(re.findall(r"`make ([\w-]+)`", text))
    assert named
    assert named <= targets


def test_flags_exist(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("inspect", "fetch", "evaluate", "recommend", "similar", "compare", "demo", "bench"):
        assert main([command, "--help"]) == 0
    for model in MODELS:
        assert main(["fit", "--model", model, "--help"]) == 0
    known = set(re.findall(r"--[a-z][a-z0-9-]*", capsys.readouterr().out))
    named = {flag for code in re.findall(r"`([^`\n]+)`", README) for flag in re.findall(r"--[a-z][a-z0-9-]*", code)}
    assert len(named) > 15
    assert named <= known


def test_models_are_told() -> None:
    sentence = re.search(r"\*\*Models\.\*\*([^.]*)\.", README)
    assert sentence is not None
    assert set(MODELS) == set(re.findall(r"`([\w-]+)`", sentence[1]))


def test_tree_is_the_tree() -> None:
    (tree,) = blocks("tree")
    told: set[str] = set()
    parents: list[str] = []
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names = line.split() if depth == 0 and line.count(".md") > 1 else line.split()[:1]
        parents = parents[:depth]
        told |= {"".join([*parents, name]) for name in names}
        parents.append(names[0])
    missing = {path for path in told if not (ROOT / path).exists()}
    assert not missing, "in the README, not in the checkout"
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "src").rglob("*.py")}
    package -= {
        path for path in package if path.endswith("/__init__.py") and (ROOT / path).read_text().count("\n") == 1
    }
    assert {path for path in told if path.endswith(".py")} == package | {"hatch_build.py"}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    broken = [link for link in links if "://" not in link and not (ROOT / link.partition("#")[0]).exists()]
    assert not broken
