"""Summary of how a log was understood."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from seqrec.errors import LogWarning, warn


@dataclass
class LogSummary:
    """Summary of how a log was understood.

    Args:
        name: path, or another name of the log in messages.
        columns: column (or columns) of each role: ``user``, ``item``, ``timestamp``, ``rating``.
        ignored: columns that have no role.
        frame_columns: columns of the resulting frame.
        time_unit: unit or notation of the times; None without times.
        notes: guesses and remarks; each was also a :class:`LogWarning`.
    """

    name: str
    columns: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    frame_columns: list[str] = field(default_factory=list)
    time_unit: str | None = None
    notes: list[str] = field(default_factory=list)

    def use(self, columns: Mapping[str, str]) -> None:
        """Record that some ignored columns have a role after all."""
        self.columns |= columns
        self.ignored = [name for name in self.ignored if name not in columns.values()]

    def warn(self, note: str) -> None:
        """Add a note, and show it as a warning at the line that called the package."""
        self.notes.append(note)
        warn(f"{self.name}: {note}", LogWarning)


def some_names(names: Iterable[str]) -> str:
    """The first names of columns, for a message."""
    return some_of(names, most=40)


def some_of(values: Iterable[Any], most: int = 5) -> str:
    """The first values, such as ids, for a message."""
    listed = list(values)
    more = f" and {len(listed) - most:,} more" if len(listed) > most else ""
    return ", ".join(str(value) for value in listed[:most]) + more
