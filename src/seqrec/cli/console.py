"""Output of the command line: text, tables and JSON."""

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
    """A console that prints ids, names and paths unchanged, and leaves broken pipes to ``main``.

    Rich would read ``[/b]`` in an id as markup and ``:smile:`` as an emoji, and would exit with status 1 on a broken
    pipe.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def on_broken_pipe(self) -> None:
        """Raise the error again."""
        raise BrokenPipeError

    def render_str(self, text: str, **options: Any) -> Text:
        """Text without control characters: an id must not be able to clear the screen or set the clipboard."""
        return super().render_str(printable(text, keep="\n\t"), **options)


def output(json_to: str | None) -> Console:
    """The console for text: standard output, or standard error if JSON goes to standard output."""
    return PlainConsole(stderr=json_to == "-")


def write_json(to: str | None, values: Any) -> None:
    """Write values as JSON to a file, or to standard output for -."""
    if to is None:
        return
    from seqrec.files import replacing

    text = json.dumps(values, indent=2, ensure_ascii=False, default=str)
    # JSON's escapes keep the values, and leave no control characters for a terminal.
    text = "\n".join(CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", line) for line in text.split("\n"))
    if to == "-":
        _write_out((text + "\n").encode())
        return
    with replacing(to) as new:
        new.write_text(text + "\n", encoding="utf-8")


def write_table(
    frames: "Iterable[pl.DataFrame]", kind: str | None, out: Path | None, json_to: str | None, title: str
) -> None:
    """Write the frames of one table, one after another. Only JSON needs all of them in memory."""
    import polars as pl

    from seqrec.data.formats.write import KINDS, text_of, write_frames, write_parquet
    from seqrec.files import replacing

    ending = out.suffix if out else ""
    if kind is None and ending not in (*KINDS, "", ".txt"):  # a table for people has only the first rows
        raise InputError(f"{out}: has an unknown ending; end the name in {', '.join(KINDS)}, or give --format")
    kind = kind or KINDS.get(ending, "table")
    if kind == "parquet" and out is None and json_to != "-" and sys.stdout.isatty():
        raise InputError("Parquet cannot be shown on a terminal; give --out FILE")
    table = None if json_to is None else pl.concat(list(frames))
    frames = frames if table is None else [table]
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
        for part in text_of(frames, kind):  # if polars wrote to the stream itself, it would hide a broken pipe
            _write_out(part)
    if table is not None:
        write_json(json_to, table.to_dicts())


def _write_out(content: bytes) -> None:
    """Write bytes to standard output. Without a buffer (PYTHONUNBUFFERED) a write may silently be partial."""
    sys.stdout.flush()
    rest = memoryview(content)
    while rest:
        rest = rest[sys.stdout.buffer.write(rest) or 0 :]
    sys.stdout.buffer.flush()


def grid(frames: "Iterable[pl.DataFrame]", title: str, most: int = 200) -> Table:
    """The first rows as a table."""
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
        grid.caption = f"the first {most} of {height:,} rows; --format csv writes all"
    return grid


def _cell(value: Any) -> str:
    """The text of a value; empty for an unknown title."""
    return f"{value:.4f}" if isinstance(value, float) else "" if value is None else printable(str(value))


def like(ids: list[str], dtype: "pl.DataType") -> "pl.Series":
    """Ids from the command line in the type of the log's ids, so that results can be joined with the log."""
    import polars as pl

    asked = pl.Series("user_id", ids, dtype=pl.String)
    typed = asked.cast(dtype, strict=False)
    return typed if (typed.cast(pl.String) == asked).fill_null(False).all() else asked
