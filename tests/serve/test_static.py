"""The files of the web page: all of them are served, and none of them makes HTML from text or loads from elsewhere."""

import re
from importlib.resources import files

from starlette.testclient import TestClient

from seqrec.serve.page import PAGES

TEXTS = {
    part.name: part.read_text(encoding="utf-8")
    for part in (files("seqrec.serve") / "static").iterdir()
    if part.is_file()
}


def test_every_file_is_served_with_its_type(client: TestClient) -> None:
    assert {name for name, _ in PAGES.values()} == set(TEXTS)
    for path, (name, kind) in PAGES.items():
        answer = client.get(path)
        assert (answer.status_code, answer.text, answer.headers["content-type"]) == (200, TEXTS[name], kind)
    imported = {name for text in TEXTS.values() for name in re.findall(r'from "\./(.+?)"', text)}
    assert imported <= set(TEXTS)


def test_text_is_never_made_into_html_or_code() -> None:
    scripts = {name: text for name, text in TEXTS.items() if name.endswith(".js")}
    for name, text in scripts.items():
        found = re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|srcdoc|\beval\b|Function\(", text
        )
        assert found is None, f"{name}: {found}"


def test_nothing_is_inline_or_from_elsewhere() -> None:
    page = TEXTS["index.html"]
    assert re.search(r"<style|style=|\son\w+=|<script(?![^>]*src=)", page) is None
    for name, text in TEXTS.items():
        elsewhere = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"')]*", text)) - {"http://www.w3.org/2000/svg"}
        assert elsewhere == set(), name
    assert set(re.findall(r'(?:src|href)="([^"#]+)"', page)) <= set(PAGES) | {"/openapi.json"}
