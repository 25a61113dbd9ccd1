"""Pictures as inline SVG that follows the colours of the page, light or dark, and as PNG files."""

import io
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from seqrec.files import replacing

#: Colours of series, in the order of use: on a light page and on a dark one. On either, each has a contrast of 3 or
#: more with the ground.
SERIES = {
    "#2563ab": "#7cb3f2", "#c2570c": "#f2a05e", "#2f7d4f": "#74c796", "#7c4dbd": "#bda0ee",
    "#0b7285": "#63c5d8", "#b4233c": "#f08a9b", "#846800": "#d9bb4c", "#9b3b86": "#e39bd2",
}  # fmt: skip
INK, MUTED, RULE, QUIET = "#20262e", "#5a6573", "#d8dde4", "#8b95a3"
#: Colours of text, of labels, of lines behind the data, and of what a series is compared with.
OTHERS = {INK: "#e8ebef", MUTED: "#a3adb9", RULE: "#363d47", QUIET: "#78828f"}
COLOURS = list(SERIES)
_DARK = SERIES | OTHERS
WIDTH = 5.8  # inches; 418 units of the SVG
_STYLE: Any = {
    "font.size": 10.5, "axes.titlesize": 10.5, "legend.fontsize": 9.5, "xtick.labelsize": 9.5, "ytick.labelsize": 9.5,
    "text.color": INK, "axes.labelcolor": MUTED, "xtick.color": MUTED, "ytick.color": MUTED, "axes.edgecolor": QUIET,
    "axes.grid": False, "grid.color": RULE, "grid.linewidth": 0.8, "axes.axisbelow": True, "axes.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    "text.parse_math": False,  # a $ in a title does not start a formula
    "svg.fonttype": "none", "svg.hashsalt": "seqrec",
}  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """A picture of a report.

    Args:
        name: name of its PNG file, without the ending.
        title: what it shows, as a caption.
        alt: what it says, for those who cannot see it.
        draw: function that draws it.
    """

    name: str
    title: str
    alt: str
    draw: Callable[[], Figure]


def rendered(picture: Picture, folder: Path | None) -> str:
    """The picture as an SVG element for a page; it is also written to ``folder`` as a PNG, if there is one.

    Text that a log brought, such as titles, is escaped. All ids in the SVG begin with the name of the picture.
    """
    with rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # of a script that the font lacks
        figure = picture.draw()
        if folder is not None:
            with replacing(folder / f"{picture.name}.png") as new:
                figure.savefig(new, format="png", dpi=200, metadata={"Software": None})
        text = io.StringIO()
        figure.savefig(
            text, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    return _inline(text.getvalue(), picture)


def _inline(text: str, picture: Picture) -> str:
    """The SVG of matplotlib without prologue, sizes, fonts and colours of its own."""
    body = text[text.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    box = re.search(r'viewBox="[\d. ]+"', body)
    assert box is not None
    body = body[body.index(">") + 1 :]
    body = body.replace("xlink:href=", "href=")
    body = re.sub(r'\b(id|href)="(#?)([^":]+)"', rf'\1="\2{picture.name}-\3"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{picture.name}-\1)", body)
    body = re.sub(r"font: (?:\w+ )*([\d.]+)px [^;\"]*", r"font-size: \1px", body)
    for number, colour in enumerate(_DARK):
        body = body.replace(colour, f"var(--c{number})")
    return f'<svg {box[0]} role="img" aria-labelledby="{picture.name}-alt"><title id="{picture.name}-alt">' + (
        f"{_escaped(picture.alt)}</title>{body}"
    )


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def variables(dark: bool) -> str:
    """The CSS variables of the colours that :func:`rendered` uses."""
    values: Mapping[str, str] = _DARK if dark else {colour: colour for colour in _DARK}
    return " ".join(f"--c{number}: {colour};" for number, colour in enumerate(values.values()))
