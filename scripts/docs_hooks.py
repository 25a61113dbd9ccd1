"""Hooks of mkdocs that add pages from outside docs/ and adjust links.

The pages are also read in the repository, where their links lead to files. The hooks make them lead to pages.
"""

import ast
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
#: Files of the repository, and their names on the site.
PAGES = {
    "benchmarks/RESULTS.md": "results.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "README.md": "index.md",
}
FILES = (
    "examples/sasrec_amazon.ipynb",
    "examples/onnx_recommend.py",
    "examples/serve_client.py",
    "examples/serve_client.sh",
    "deploy/Dockerfile",
    "deploy/ray.Dockerfile",
    "deploy/rayjob.yaml",
    "deploy/seqrec.service",
    "LICENSE",
)
LINK = re.compile(r"(\]\()([^)\s]+)(\))")


def modules() -> dict[str, str]:
    """The first line of the docstring of each module, by its path below src/."""
    found = {}
    for path in sorted((ROOT / "src").rglob("*.py")):
        said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        line = (said or "").partition("\n")[0]
        found[path.relative_to(ROOT / "src").as_posix()] = re.sub(r":\w+:`~?([\w.]+)`", r"`\1`", line)
    return found


def module_tables() -> str:
    """A table of the modules of each folder."""
    folders: dict[str, list[str]] = {}
    for path, said in modules().items():
        folder, _, name = path.rpartition("/")
        folders.setdefault(folder, []).append(f"| `{name}` | {said.replace('|', '&#124;')} |")
    tables = ("\n".join([f"## {name}", "", "| module | what it is for |", "| --- | --- |", *rows])
              for name, rows in folders.items())  # fmt: skip
    return "\n\n".join(tables)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages and files from outside docs/."""
    from mkdocs.structure.files import File  # imported here, because the tests load this file without mkdocs

    for source, page in PAGES.items():
        if page != "index.md":
            files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for source in FILES:
        files.append(File.generated(config, source, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links to files of the repository into links to pages of the site."""
    sources = {to: source for source, to in PAGES.items() if to != "index.md"}
    page_source = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def turned(found: re.Match[str]) -> str:
        link, hash_, anchor = found[2].partition("#")
        if not link or "://" in link or link.startswith("mailto:"):
            return found[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page_source), link))
        return f"{found[1]}{PAGES.get(path, path.removeprefix('docs/'))}{hash_}{anchor}{found[3]}"

    return LINK.sub(turned, markdown).replace("<!-- modules -->", module_tables())
