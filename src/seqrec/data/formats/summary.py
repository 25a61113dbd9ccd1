"""What was understood of a log."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from seqrec.errors import LogWarning, warn


@dataclass
class LogSummary:
    """What was understood of a log.

    Args:
        name: the path, or what else messages call the log.
        columns: role (``user``, ``item``, ``timestamp``, ``rating``) to the column or columns that play it.
        ignored: the other columns, which nothing uses.
        frame_columns: the columns of the frame that came of it.
        time_unit: how the times are written; None without times.
        notes: what was guessed or left aside, each of which was a :class:`LogWarning` too.
    """

    name: str
    columns: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    frame_columns: list[str] = field(default_factory=list)
    time_unit: str | None = None
    notes: list[str] = field(default_factory=list)

    def use(self, columns: Mapping[str, str]) -> None:
        """Note that columns which were ignored play a role after all."""
        self.columns |= columns
        self.ignored = [name for name in self.ignored if name not in columns.values()]

    def warn(self, note: str) -> None:
        """Keep a note, and warn of it where the package was called."""
        self.notes.append(note)
        warn(f"{self.name}: {note}", LogWarning)


def some_names(names: Iterable[str], most: int = 40) -> str:
    """The first names of columns, for a message."""
    shown = list(names)
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return ", ".join(shown[:most]) + more
