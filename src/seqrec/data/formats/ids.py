"""Files of ids."""

from pathlib import Path

from seqrec.errors import InputError


def lines_of(path: Path) -> list[str]:
    """Ids in a text file, one a line; blanks around them and empty lines don't count."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"{path}: cannot be read ({reason}); give a text file with an id a line") from error
    ids = [line.strip() for line in text.splitlines() if line.strip()]
    if not ids:
        raise InputError(f"{path}: is empty; give a text file with an id a line")
    return ids
