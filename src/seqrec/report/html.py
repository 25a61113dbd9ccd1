"""Builds HTML: whatever is not :class:`Html` already is text, and is escaped."""

import html
from collections.abc import Iterable, Sequence

from seqrec.errors import printable

#: Elements without content.
_VOID = {"meta", "br", "hr", "col"}


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def escaped(text: object) -> Html:
    """Any value as HTML. Control characters, which HTML does not have, are shown as in Python."""
    return text if isinstance(text, Html) else Html(html.escape(printable(str(text))))


def joined(parts: Iterable[object], between: str = "") -> Html:
    """Values as HTML, one after another."""
    return Html(between.join(escaped(part) for part in parts))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """An element. The attributes ``class_`` and ``aria_label`` are written ``class`` and ``aria-label``."""
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escaped(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{shown}>" if name in _VOID else f"<{name}{shown}>{joined(children)}</{name}>")


def table(
    caption: object, columns: Sequence[object], rows: Iterable[Sequence[object]], class_: str | None = None
) -> Html:
    """A table whose first column names the rows, in a region that scrolls by itself and can be focused to do so."""
    head = tag("tr", *(tag("th", name, scope="col") for name in columns))
    body = [
        tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:])) for row in rows
    ]  # fmt: skip
    label = html.unescape(escaped(caption)) if not isinstance(caption, Html) else "table"
    shown = tag("table", tag("caption", tag("span", caption)), tag("thead", head), tag("tbody", *body), class_=class_)
    return tag("div", shown, class_="scroll", role="region", tabindex="0", aria_label=label)
