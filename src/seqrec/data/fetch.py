"""Downloads public data sets by name, verifies them, and converts them to logs that ``read_log`` reads."""

import gzip
import hashlib
import os
import re
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib import request
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import DownloadColumn, Progress

from seqrec.errors import InputError
from seqrec.files import explain_os_error, replacing, sync, sync_folder

ATTEMPTS = 3  # per mirror
PAUSE_SECONDS = 1.0
TIMEOUT_SECONDS = 30.0
LARGEST_DOWNLOAD = 8 << 30  # if no size is published; the largest file here, Books, has about 3 GB
LARGEST_UNPACKED = 32 << 30
BLOCK = 1 << 16
# raised by gzip and zipfile for wrong bytes, an encrypted member, an unknown method or a missing member
_DAMAGED = (zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, RuntimeError, ValueError, KeyError)


@dataclass(frozen=True)
class Source:
    """Where to find a data set, and how to verify its file.

    Args:
        urls: mirrors, in the order in which they are tried.
        size: size of the file in bytes, if published.
        md5: MD5 of the file, if published.
        member: file with the ratings inside of a zip (columns user, item, rating, time); None for a gzipped log.
        separator: separator of the columns of ``member``.
        header: whether ``member`` begins with a line of column names.
    """

    urls: tuple[str, ...]
    size: int | None = None
    md5: str | None = None
    member: str | None = None
    separator: bytes = b","
    header: bool = False


def _movielens(name: str, ratings: str, separator: bytes, size: int, md5: str) -> Source:
    # GroupLens publishes the MD5 beside each archive (<archive>.md5), which makes plain HTTP a safe
    # alternative; the size is from TensorFlow Datasets (url_checksums/movielens.txt).
    address = f"files.grouplens.org/datasets/movielens/{name}.zip"
    urls = (f"https://{address}", f"http://{address}")
    return Source(urls, size, md5, f"{name}/{ratings}", separator, separator == b",")


def _amazon(category: str, size: int | None = None, md5: str | None = None) -> Source:
    # The 5-core reviews from 1996 to July 2014. The authors' page links to the first host, the second is
    # their own. They publish no checksums, so the file is unpacked completely to check gzip's CRC.
    path = f"categoryFiles/reviews_{category}_5.json.gz"
    hosts = ("snap.stanford.edu/data/amazon/productGraph", "mcauleylab.ucsd.edu/public_datasets/data/amazon")
    return Source(tuple(f"https://{host}/{path}" for host in hosts), size, md5)


SOURCES: dict[str, Source] = {
    "ml-100k": _movielens("ml-100k", "u.data", b"\t", 4_924_029, "0e33842e24a9c977be4e0107933c0723"),
    "ml-1m": _movielens("ml-1m", "ratings.dat", b"::", 5_917_549, "c4d9eecfca2ab87c1945afe126590906"),
    "ml-20m": _movielens("ml-20m", "ratings.csv", b",", 198_702_078, "cd245b17a1ae2cc31bb14903e1204af3"),
    "ml-25m": _movielens("ml-25m", "ratings.csv", b",", 261_978_986, "6b51fb2759a8657d3bfcbfc42b592ada"),
    "amazon-beauty": _amazon("Beauty"),
    "amazon-books": _amazon("Books"),
    "amazon-clothing": _amazon("Clothing_Shoes_and_Jewelry"),
    # size and MD5 as several independent projects recorded them
    "amazon-electronics": _amazon("Electronics", 495_854_086, "e4524af6c644cd044b1969bac7b62b2a"),
    "amazon-movies": _amazon("Movies_and_TV"),
    "amazon-musical-instruments": _amazon("Musical_Instruments", 2_460_495),
    "amazon-sports": _amazon("Sports_and_Outdoors"),
    "amazon-toys": _amazon("Toys_and_Games"),
    "amazon-video-games": _amazon("Video_Games"),
}


class _Failed(Exception):
    """One attempt failed; ``again`` says whether to retry with the same mirror."""

    def __init__(self, reason: str, *, again: bool = False) -> None:
        super().__init__(reason)
        self.again = again


def fetch(name: str, out: str | Path | None = None, *, progress: bool = True) -> Path:
    """Download and verify a public data set, unless it is there already, and return the path of its log.

    MovieLens becomes ``<name>.csv`` with the columns user_id, item_id, rating, timestamp. The Amazon 5-core reviews of
    2014 become ``<name>.json.gz``, unchanged. An interrupted download is resumed. A file with the publisher's name
    that you put into the folder yourself is verified and used.

    Args:
        name: name of the data set, one of ``SOURCES``.
        out: folder for the log; by default :func:`cache_folder`.
        progress: whether to show a progress bar.

    Raises:
        InputError: the name is unknown, the file is unreachable or wrong, or the folder cannot be written.
    """
    if name not in SOURCES:
        raise InputError(f"{name!r}: no such data set; choose from {', '.join(SOURCES)}")
    source = SOURCES[name]
    try:
        folder = Path(out).expanduser() if out is not None else cache_folder()
    except RuntimeError as error:
        raise InputError(f"{out}: cannot be found ({error}); give a folder for the data set {name}") from None
    archive = folder / source.urls[0].rsplit("/", 1)[-1]
    log = folder / (f"{name}.csv" if source.member else f"{name}.json.gz")
    try:
        if log.is_file():  # it gets this name only once complete and verified
            return log
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder}: is a file; name a folder for the data set {name}")
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(archive.with_name(f".{archive.name}.lock"), progress):
            if not log.is_file():  # no other process fetched it in the meantime
                if archive.exists():
                    _check(archive, source)
                else:
                    _download(name, source, archive, progress)
                if source.member:
                    _convert(archive, source, log)
                else:
                    archive.replace(log)
    except _Failed as failure:
        raise InputError(f"{archive}: {failure}; delete it or put {source.urls[0]} there") from failure
    except OSError as error:
        raise explain_os_error(error, archive) from error
    return log


def cache_folder() -> Path:
    """``$SEQREC_CACHE``, else ``$XDG_CACHE_HOME/seqrec``, else ``~/.cache/seqrec``."""
    if named := os.environ.get("SEQREC_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "seqrec"


@contextmanager
def _locked(path: Path, progress: bool) -> Iterator[None]:
    """Hold a lock on a file; waits for another process that holds it."""
    try:
        import fcntl
    except ImportError:  # on Windows two processes may both download the file; the last one wins
        yield
        return
    # The lock file is kept: if it were removed, two processes could hold locks on two different files.
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if progress:
                Console(stderr=True).print("another process is fetching this data set; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download(name: str, source: Source, archive: Path, progress: bool) -> None:
    """Fill ``archive`` from the first mirror whose file passes the check."""
    partial = archive.with_name(f"{archive.name}.partial")
    reasons = []
    for url in source.urls:
        for attempt in range(ATTEMPTS):
            time.sleep(PAUSE_SECONDS * attempt)
            try:
                _transfer(url, source, partial, progress)
                _check(partial, source)
            except _Failed as failure:
                reason = str(failure)
                if not failure.again:
                    break
            else:
                sync(partial)
                partial.replace(archive)
                sync_folder(archive.parent)
                _discard(partial)
                return
        reasons.append(f"{url}: {reason}")
    kept = any(_resumable(partial, url)[0] for url in source.urls)
    raise InputError(
        f"{name}: cannot be fetched ({'; '.join(reasons)}); {'run again to resume, or ' if kept else ''}"
        f"download {source.urls[0]} yourself, save it as {archive} and run again"
    )


def _transfer(url: str, source: Source, partial: Path, progress: bool) -> None:
    """Send one request; resumes where ``partial`` ends if the server still has the same file."""
    start, validator = _resumable(partial, url)
    headers = {"User-Agent": "seqrec"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    try:
        response = _opener().open(request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS)
    except HTTPError as error:
        with error:
            if error.code == 416 and start:
                if error.headers.get("Content-Range") == f"bytes */{start}":
                    return  # the file is complete already
                _discard(partial)
            again = error.code >= 500 or error.code in (408, 416, 429)
            raise _Failed(f"HTTP {error.code} {_reason(error)}", again=again) from error
    except (OSError, HTTPException, ValueError) as error:
        raise _Failed(_reason(error), again=True) from error
    with response:
        if response.status == 206:
            found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
            if not found or int(found[1]) != start:
                _discard(partial)
                raise _Failed("sends a different range than requested", again=True)
            total = int(found[2])
        else:
            start, total = 0, response.length
        _save(response, url, source, partial, start, total, progress)


def _save(
    response: Any, url: str, source: Source, partial: Path, start: int, total: int | None, progress: bool
) -> None:
    """Append the response to the first ``start`` bytes of ``partial``; the complete file has ``total`` bytes."""
    block = _read(response)
    if not block:
        raise _Failed("broke off", again=True)  # before an existing file is overwritten
    if start == 0:
        _check_magic(block, source)
    most = source.size or LARGEST_DOWNLOAD
    if total and (total > most or total != (source.size or total)):
        raise _Failed(f"offers {total:,} bytes, not {'' if source.size else 'at most '}{most:,}")
    expected = total or source.size
    if start == 0:
        partial.write_bytes(b"")
        validator = response.headers.get("ETag", "")
        if not validator.startswith('"'):  # a weak ETag doesn't promise equal bytes
            validator = response.headers.get("Last-Modified", "")
        partial.with_suffix(".origin").write_text(f"{url}\n{validator}", encoding="utf-8")
    have = start
    columns = (*Progress.get_default_columns(), DownloadColumn())
    bar = Progress(*columns, console=Console(stderr=True), disable=not progress)
    with bar, partial.open("ab") as file:
        task = bar.add_task(partial.stem, total=expected, completed=start)
        while block:
            have += len(block)
            if have > most:
                _discard(partial)
                raise _Failed(f"sends more than {most:,} bytes")
            file.write(block)
            bar.advance(task, len(block))
            block = _read(response)
    if have < (expected or 0):
        raise _Failed(f"broke off after {have:,} of {expected:,} bytes", again=True)


def _read(response: Any) -> bytes:
    try:
        return response.read(BLOCK)
    except (OSError, HTTPException, ValueError) as error:  # network errors, as opposed to disk errors
        raise _Failed(_reason(error), again=True) from error


def _reason(error: Exception) -> str:
    """A short, printable reason for an error of the network or of unpacking."""
    cause = error.reason if isinstance(error, URLError) else error
    text = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
    text = "".join(letter if letter.isprintable() else " " for letter in text[:200])  # the text may come from a server
    return " ".join(text.split()) or type(error).__name__


def _resumable(partial: Path, url: str) -> tuple[int, str]:
    """Number of bytes already downloaded from this mirror, and the server's tag of the file."""
    try:
        came_from, validator = partial.with_suffix(".origin").read_text(encoding="utf-8").split("\n")
        start = partial.stat().st_size
    except (FileNotFoundError, ValueError):
        return 0, ""
    return (start, validator) if came_from == url and validator else (0, "")


def _discard(partial: Path) -> None:
    partial.unlink(missing_ok=True)
    partial.with_suffix(".origin").unlink(missing_ok=True)


class _WebOnly(request.HTTPRedirectHandler):
    """Follows redirects only to http and https, and never from https to http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urlsplit(newurl).scheme not in ({"https"} if req.type == "https" else {"http", "https"}):
            raise HTTPError(newurl, code, f"redirect to {newurl} is not allowed", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> request.OpenerDirector:
    opener = request.OpenerDirector()  # build_opener would add handlers for file:, ftp: and data:
    web = (request.ProxyHandler, request.HTTPHandler, request.HTTPSHandler, _WebOnly)
    for handler in (*web, request.HTTPDefaultErrorHandler, request.HTTPErrorProcessor):
        opener.add_handler(handler())
    return opener


def _check_magic(block: bytes, source: Source) -> None:
    kind, magic = ("zip", b"PK\x03\x04") if source.member else ("gzip", b"\x1f\x8b")
    if not block.startswith(magic):
        page = "a web page" if block.lstrip()[:1] == b"<" else "something else"
        raise _Failed(f"is not a {kind} file but {page}")


def _check(path: Path, source: Source) -> None:
    """Raise unless ``path`` is the published file, as far as can be checked; a wrong download is deleted."""
    try:
        with path.open("rb") as file:
            _check_magic(file.read(4), source)
            size = path.stat().st_size
            if size != (source.size or size):
                raise _Failed(f"has {size:,} bytes, but the published file has {source.size:,}")
            file.seek(0)
            digest = hashlib.md5(usedforsecurity=False)  # some machines forbid MD5 for security
            if source.md5 and hashlib.file_digest(file, lambda: digest).hexdigest() != source.md5:
                raise _Failed("has a different MD5 than the published file")
        with _ratings(path, source) as unpacked:
            have = 0
            while source.md5 is None and (block := unpacked.read(1 << 20)):  # reading compares the CRC
                have += len(block)
                if have > LARGEST_UNPACKED:
                    raise _Failed(f"unpacks to more than {LARGEST_UNPACKED:,} bytes")
    except _Failed:
        if path.suffix == ".partial":  # keep a file that a person put there
            _discard(path)
        raise


@contextmanager
def _ratings(path: Path, source: Source) -> Iterator[IO[bytes] | gzip.GzipFile]:
    """Open the unpacked ratings. Only the expected member of a zip is opened, and no name in it is used as a path."""
    try:
        if source.member is None:
            with gzip.open(path) as unpacked:
                yield unpacked
        else:
            with zipfile.ZipFile(path) as archive, archive.open(source.member) as member:
                yield member
    except _DAMAGED as error:
        raise _Failed(f"is damaged or another file ({_reason(error)})") from error


def _convert(archive: Path, source: Source, log: Path) -> None:
    """Write the ratings of a zip as CSV with seqrec's column names."""
    with replacing(log) as temporary, _ratings(archive, source) as unpacked, temporary.open("wb") as file:
        first = unpacked.readline(BLOCK)
        if first.count(source.separator) != 3:
            raise _Failed(f"does not have four columns in {source.member}")
        file.write(b"user_id,item_id,rating,timestamp\n")
        file.write(b"" if source.header else first.replace(source.separator, b","))
        while block := unpacked.read(BLOCK):
            block += unpacked.readline(BLOCK)  # so that a separator of two bytes is not cut
            file.write(block.replace(source.separator, b","))
