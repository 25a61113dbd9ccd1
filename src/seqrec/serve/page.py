"""The web page: a few static files, read once. Clients choose among their names, never a path."""

from importlib.resources import files

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

_SCRIPT = "text/javascript; charset=utf-8"
_SCRIPTS = (
    *("api.js", "app.js", "chart.js", "combobox.js", "dom.js", "history.js", "list.js", "model.js"),
    *("next.js", "people.js", "similar.js", "state.js", "theme.js", "token.js"),
)
#: The files by path, with their types.
PAGES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/static/style.css": ("style.css", "text/css; charset=utf-8"),
    "/static/icon.svg": ("icon.svg", "image/svg+xml"),
} | {f"/static/{name}": (name, _SCRIPT) for name in _SCRIPTS}


def add_page(app: FastAPI) -> frozenset[str]:
    """Add the page to an application. Returns its paths, which need no token: they are the same for everybody."""
    folder = files("seqrec.serve") / "static"
    for path, (name, kind) in PAGES.items():
        content = (folder / name).read_bytes()

        async def show(_: Request, content: bytes = content, kind: str = kind) -> Response:
            return Response(content, media_type=kind)

        app.add_route(path, show, methods=["GET"], include_in_schema=False)
    return frozenset(PAGES)
