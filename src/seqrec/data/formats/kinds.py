"""Recognises files that are not logs: archives, web pages, other programs' files, pointers to data elsewhere."""

import re
from pathlib import Path

from seqrec.errors import InputError

_UNPACK = "unpack it first, or compress it with gzip"
_EXPORT = "export its data as CSV or Parquet"
#: First bytes, kind of file, and advice. Entries of letters only apply to binary files, because a column of a text file
#: may be called ORCID or PARENT.
_MAGIC: list[tuple[bytes, str, str]] = [
    (b"PK\x03\x04", "a zip archive or an Excel workbook", f"unpack it first, or {_EXPORT}"),
    (b"PK\x05\x06", "an empty zip archive", _UNPACK),
    (b"\x1f\x8b", "a file gzipped twice", "unpack it once"),
    (b"\x28\xb5\x2f\xfd", "a file compressed with zstd", _UNPACK),
    (b"BZh", "a file compressed with bzip2", _UNPACK),
    (b"\xfd7zXZ\0", "a file compressed with xz", _UNPACK),
    (b"\x04\x22\x4d\x18", "a file compressed with lz4", _UNPACK),
    (b"\xff\x06\0\0sNaPpY", "a file compressed with snappy", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (b"SQLite format 3\0", "an SQLite database", f"{_EXPORT} (sqlite3 -header -csv FILE QUERY)"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", _EXPORT),
    (b"\x93NUMPY", "a numpy array", _EXPORT),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel or Word document", _EXPORT),
    (b"ARROW1", "an Arrow or Feather file", "write it as Parquet"),
    (b"FEA1", "a Feather file", "write it as Parquet"),
    (b"Obj\x01", "an Avro file", "write it as Parquet"),
    (b"ORC", "an ORC file", "write it as Parquet"),
    (b"PARE", "an encrypted Parquet file", "write it without encryption"),
    (b"RDX", "an R data file", _EXPORT),
    (b"\x89PNG\r\n", "a PNG image", "give another file"),
    (b"\xff\xd8\xff", "a JPEG image", "give another file"),
    (b"GIF8", "a GIF image", "give another file"),
    (b"\x7fELF", "a program", "give another file"),
    (b"MZ\x90\0", "a program", "give another file"),
]
#: Pattern at the beginning of a text, kind of file, and advice.
_TEXTS: list[tuple[str, str, str]] = [
    (r"version https://git-lfs\.github\.com/spec/", "a Git LFS pointer", "fetch the file itself (git lfs pull)"),
    (r"/annex/objects/|(\.\./)*\.git/annex/", "a git-annex pointer", "fetch the file itself (git annex get)"),
    (r"(md5|outs|deps):\s*\n- ", "a DVC pointer", "fetch the file itself (dvc pull)"),
    (r"<(!doctype\s+html|html|head|body|script|style|meta|title)\b", "a web page", "download it again"),
    (r"<(\?xml|!doctype|!--|[a-z_][\w:.-]*(\s[^<>\n]*)?/?>(\s*\n\s*)?(<|\s*$))", "XML", _EXPORT),
    (r'\[\s*(\{\s*"|\{\s*\}|$)', "a JSON array", "write one object per line (jq -c '.[]' FILE)"),
    (r"%PDF-", "a PDF document", _EXPORT),
    (r"\{\\rtf", "an RTF document", _EXPORT),
    (r"-----BEGIN ", "a key or a certificate", "give another file"),
    (r"%%MatrixMarket", "a Matrix Market file", _EXPORT),
    (r"@relation\s", "an ARFF file", _EXPORT),
    (r"-- \w*SQL\w* dump|-- Dump|CREATE TABLE\s|INSERT INTO\s|PRAGMA \w+=", "an SQL dump", _EXPORT),
    (r"#!\s*/", "a script", "give another file"),
    (r'\S+ \S+ \S+ \[[^\]]*\] "[A-Z]+ \S+', "a web server's log", "write user, item and time of each request as CSV"),
]
# Pickles of protocols 2 to 5 begin with two bytes that could begin other files, and end with a full stop.
_PICKLE = re.compile(rb"\x80[\x02-\x05](\x95.{8}|[}\](cX\x8c])", re.DOTALL)
_TAR_NAME = slice(257, 262)


def check_kind(path: Path, head: bytes) -> None:
    """Raise if a file begins like a kind of file that is not a log.

    Args:
        path: path for the message.
        head: first bytes of the file, unzipped; a few hundred are enough.
    """
    for magic, kind, advice in _MAGIC:
        if head.startswith(magic) and (not magic.isalnum() or _is_binary(head)):
            raise _refusal(path, kind, advice)
    if head[_TAR_NAME] == b"ustar":
        raise _refusal(path, "a tar archive", _UNPACK)
    if _PICKLE.match(head):
        raise _refusal(path, "a Python pickle", f"{_EXPORT} (a pickle can run any code)")
    text = head[:4096].decode("utf-8-sig", errors="replace").lstrip()
    for pattern, kind, advice in _TEXTS:
        if re.match(pattern, text, re.IGNORECASE):
            raise _refusal(path, kind, advice)
    # Only an object over several lines: one on a single line is the first row of a log.
    first = text.partition("\n")[0].rstrip()
    if text.startswith("{") and not first.endswith("}") and re.search('"cell_type"|"nbformat"', text):
        raise _refusal(path, "a Jupyter notebook", _EXPORT)


def _is_binary(head: bytes) -> bool:
    return any(byte < 32 and byte not in b"\t\n\v\f\r\x1b" for byte in head[:1024])


def _refusal(path: Path, kind: str, advice: str) -> InputError:
    return InputError(f"{path}: looks like {kind}, which is not supported; {advice}")
