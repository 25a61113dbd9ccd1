"""What the command line prints and writes."""

import io
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from seqrec.errors import CONTROL, InputError, printable

if TYPE_CHECKING:
    import polars as pl


class PlainConsole(Console):
    """Prints ids, names and paths as they are, and leaves a reader that has gone to ``main``.

    Rich would read ``[/b]`` in an id as markup and ``:smile:`` as a picture, and end the process with 1.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def on_broken_pipe(self) -> None:
        """Go on with the error that is being handled."""
        raise BrokenPipeError

    def render_str(self, text: str, **options: Any) -> Text:
        """Text for the terminal: an id of a log must not be able to clear the screen or set the clipboard."""
        return super().render_str(printable(text, keep="\n\t"), **options)


def output(json_to: str | None) -> Console:
    """Where words go: standard output, or standard error where JSON takes that."""
    return PlainConsole(stderr=json_to == "-")


def write_json(to: str | None, values: Any) -> None:
    """Values as JSON to a file, or to standard output for -."""
    if to is None:
        return
    from seqrec.files import replacing

    text = json.dumps(values, indent=2, ensure_ascii=False, default=str)
    # JSON's own escapes say the same, and nothing that a terminal would act on is left.
    text = "\n".join(CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", line) for line in text.split("\n"))
    if to == "-":
        _write_out((text + "\n").encode())
        return
    with replacing(to) as new:
        new.write_text(text + "\n", encoding="utf-8")


def write_table(
    frames: "Iterable[pl.DataFrame]", kind: str | None, out: Path | None, json_to: str | None, title: str
) -> None:
    """Frames of one table, one after another; only JSON needs all of them at once."""
    import polars as pl

    from seqrec.data.formats.write import KINDS, text_of, write_frames, write_parquet
    from seqrec.files import replacing

    ending = out.suffix if out else ""
    if kind is None and ending not in (*KINDS, "", ".txt"):  # a table for people holds the first rows alone
        raise InputError(f"{out}: is of no known kind; end its name in {', '.join(KINDS)}, or give --format")
    kind = kind or KINDS.get(ending, "table")
    if kind == "parquet" and out is None and json_to != "-" and sys.stdout.isatty():
        raise InputError("Parquet is not for a terminal; give --out FILE")
    whole = None if json_to is None else pl.concat(list(frames))
    frames = frames if whole is None else [whole]
    if out is not None and kind == "table":
        with replacing(out) as new, new.open("w", encoding="utf-8") as file:
            PlainConsole(file=file, width=100).print(grid(frames, title))
    elif out is not None:
        write_frames(frames, out, kind)
    elif json_to == "-":
        pass  # JSON takes standard output
    elif kind == "table":
        PlainConsole().print(grid(frames, title))
    elif kind == "parquet":
        memory = io.BytesIO()
        write_parquet(frames, memory)
        _write_out(memory.getvalue())
    else:
        for part in text_of(frames, kind):  # not polars itself into the stream: it hides that the reader has gone
            _write_out(part)
    if whole is not None:
        write_json(json_to, whole.to_dicts())


def _write_out(content: bytes) -> None:
    """All of it to standard output, which without a buffer (PYTHONUNBUFFERED) may take a part and say nothing."""
    sys.stdout.flush()
    rest = memoryview(content)
    while rest:
        rest = rest[sys.stdout.buffer.write(rest) or 0 :]
    sys.stdout.buffer.flush()


def grid(frames: "Iterable[pl.DataFrame]", title: str, most: int = 200) -> Table:
    """The first rows as a table for people."""
    import polars as pl

    height, heads = 0, []
    for frame in frames:
        heads.append(frame.head(max(most - height, 0)))
        height += frame.height
    shown = pl.concat(heads)
    grid = Table(title=title)
    for name in shown.columns:
        grid.add_column(name, justify="right" if shown[name].dtype.is_numeric() else "left", overflow="fold")
    for row in shown.iter_rows():
        grid.add_row(*map(_cell, row))
    if height > most:
        grid.caption = f"the first {most} of {height:,} rows; --format csv gives all"
    return grid


def _cell(value: Any) -> str:
    """A value for people; nothing for a title that is not known."""
    return f"{value:.4f}" if isinstance(value, float) else "" if value is None else printable(str(value))


def like(ids: list[str], dtype: "pl.DataType") -> "pl.Series":
    """Ids of a command line in the type of the log's, so that results join with it."""
    import polars as pl

    asked = pl.Series("user_id", ids, dtype=pl.String)
    typed = asked.cast(dtype, strict=False)
    return typed if (typed.cast(pl.String) == asked).fill_null(False).all() else asked
