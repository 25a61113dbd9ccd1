import errno
import gzip
import hashlib
import importlib
import io
import itertools
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from seqrec.data.fetch import SOURCES, Source, cache_folder, fetch
from seqrec.errors import InputError

module = importlib.import_module("seqrec.data.fetch")  # by name, whatever the package calls `fetch`

# stored, not deflated, so that the archives are longer than one block of the download
ROWS = [(user, item, 1 + item % 5, 10**9 + user * 100 + item) for user in range(90) for item in range(60)]
EXPECTED = "user_id,item_id,rating,timestamp\n" + "".join(f"{u},{i},{r},{t}\n" for u, i, r, t in ROWS)
PAGE = b"\n<!DOCTYPE html><html><body>The data set has moved</body></html>"


def text_of(separator: str, header: str = "") -> bytes:
    return (header + "".join(separator.join(map(str, row)) + "\n" for row in ROWS)).encode()


def zip_of(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


ZIP = zip_of(**{"set/README": b"read me", "set/ratings.dat": text_of("::")})
GZIP = gzip.compress(b'{"reviewerID": "A", "asin": "B", "overall": 5.0, "unixReviewTime": 1}\n' * 20_000, 1, mtime=0)
MD5 = hashlib.md5(ZIP).hexdigest()


@dataclass
class Site:
    """A real server whose answers a test sets by path, and which remembers what it was asked."""

    url: str = ""
    answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    def serves(self, path: str, answer: Callable[[BaseHTTPRequestHandler], None]) -> str:
        self.answers[path] = answer
        return f"{self.url}{path}"


class Handler(BaseHTTPRequestHandler):
    site: Site

    def do_GET(self) -> None:
        self.site.asked.append((self.path, self.headers["Range"]))
        self.site.answers.get(self.path, status(404))(self)

    def log_message(self, *args: object) -> None:
        pass


def status(code: int, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()

    return answer


def content(
    body: bytes,
    *,
    cut: tuple[int, ...] = (),
    ranges: bool = True,
    length: int | None = -1,
    tag: tuple[str, ...] = ('"one"',),
) -> Callable[[BaseHTTPRequestHandler], None]:
    """Serve ``body``; ``cut`` lists after how many bytes the requests break off, the last for all others.

    ``length`` -1 is the true one, None sends no Content-Length; ``tag`` lists the ETags (or times) of the answers.
    """
    cuts = itertools.chain(cut, itertools.repeat(cut[-1] if cut else len(body)))
    tags = itertools.chain(tag, itertools.repeat(tag[-1]))

    def answer(handler: BaseHTTPRequestHandler) -> None:
        now, most, start, wanted = next(tags), next(cuts), 0, handler.headers["Range"]
        if wanted and ranges and handler.headers["If-Range"] == now:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start and start >= len(body):
            status(416, Content_Range=f"bytes */{len(body)}")(handler)
            return
        handler.send_response(206 if start else 200)
        handler.send_header("ETag" if '"' in now else "Last-Modified", now)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if length is not None:
            handler.send_header("Content-Length", str(len(body) - start if length < 0 else length))
        handler.end_headers()
        handler.wfile.write(body[start : start + most])

    return answer


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OfSite", (Handler,), {"site": site}))
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.0)
    monkeypatch.setenv("no_proxy", "*")
    yield site
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> dict[str, Source]:
    table: dict[str, Source] = {}
    monkeypatch.setattr(module, "SOURCES", table)
    return table


def zipped(*urls: str, size: int | None = None, md5: str | None = None) -> Source:
    return Source(urls, size=size, md5=md5, member="set/ratings.dat", separator=b"::")


def refusal(name: str, out: Path) -> str:
    with pytest.raises(InputError) as caught:
        fetch(name, out, progress=False)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".set.zip.lock"}


# ---------------------------------------------------------------- what arrives


def test_a_zip_becomes_a_csv_and_is_asked_for_once(site, sources, tmp_path):
    url = site.serves("/set.zip", content(ZIP))
    sources["set"] = zipped(url, size=len(ZIP), md5=MD5)
    log = fetch("set", tmp_path / "new" / "folder")
    assert log == tmp_path / "new" / "folder" / "set.csv"
    assert log.read_text() == EXPECTED
    assert left_in(log.parent) == {"set.csv", "set.zip"}
    assert fetch("set", log.parent) == log
    assert site.asked == [("/set.zip", None)]


@pytest.mark.parametrize(
    ("separator", "header", "line"),
    [("\t", False, ""), (",", True, "userId,movieId,rating,timestamp\n"), ("::", False, "")],
)
def test_every_layout_of_movielens_is_converted(site, sources, tmp_path, separator, header, line):
    body = zip_of(**{"set/ratings": text_of(separator, line)})
    url = site.serves("/set.zip", content(body))
    sources["set"] = Source((url,), member="set/ratings", separator=separator.encode(), header=header)
    assert fetch("set", tmp_path, progress=False).read_text() == EXPECTED


@pytest.mark.parametrize("length", [-1, None])
def test_a_gzip_stays_as_it_is(site, sources, tmp_path, length):
    sources["toys"] = Source((site.serves("/reviews_5.json.gz", content(GZIP, length=length)),))
    log = fetch("toys", tmp_path, progress=False)
    assert log.name == "toys.json.gz"
    assert log.read_bytes() == GZIP
    assert fetch("toys", tmp_path, progress=False) == log
    assert len(site.asked) == 1


def test_the_cache_is_where_the_environment_says(site, sources, tmp_path, monkeypatch):
    sources["set"] = zipped(site.serves("/set.zip", content(ZIP)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("SEQREC_CACHE", raising=False)
    assert cache_folder() == tmp_path / "xdg" / "seqrec"
    monkeypatch.setenv("SEQREC_CACHE", str(tmp_path / "cache"))
    assert fetch("set", progress=False) == tmp_path / "cache" / "set.csv"
    monkeypatch.delenv("SEQREC_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "seqrec"


def test_two_at_once_ask_once(site, sources, tmp_path):
    sources["set"] = zipped(site.serves("/set.zip", content(ZIP)), md5=MD5)
    with ThreadPoolExecutor(4) as pool:
        logs = list(pool.map(lambda _: fetch("set", tmp_path, progress=False), range(4)))
    assert {log.read_text() for log in logs} == {EXPECTED}
    assert len(site.asked) == 1


# ---------------------------------------------------------------- broken downloads


@pytest.mark.parametrize("tag", ['"one"', "Mon, 01 Jan 2018 00:00:00 GMT"])
def test_a_broken_download_goes_on_where_it_stopped(site, sources, tmp_path, tag):
    url = site.serves("/set.zip", content(ZIP, cut=(70_000, 20_000, len(ZIP)), tag=(tag,)))
    sources["set"] = zipped(url, md5=MD5)
    log = fetch("set", tmp_path, progress=False)
    assert log.read_text() == EXPECTED
    assert (tmp_path / "set.zip").read_bytes() == ZIP
    assert site.asked == [("/set.zip", None), ("/set.zip", "bytes=70000-"), ("/set.zip", "bytes=90000-")]
    assert left_in(tmp_path) == {"set.csv", "set.zip"}


def test_what_arrived_is_kept_for_the_next_call(site, sources, tmp_path):
    url = site.serves("/set.zip", content(ZIP, cut=(10_000,)))
    sources["set"] = zipped(url, md5=MD5)
    assert f"broke off after 30,000 of {len(ZIP):,} bytes); run again to resume" in refusal("set", tmp_path)
    assert (tmp_path / "set.zip.partial").read_bytes() == ZIP[:30_000]
    site.serves("/set.zip", content(ZIP))
    assert fetch("set", tmp_path, progress=False).read_text() == EXPECTED
    assert site.asked[-1] == ("/set.zip", "bytes=30000-")


@pytest.mark.parametrize(("more", "requests"), [(0, 1), (4, 2)])
def test_a_partial_that_is_whole_is_taken_and_a_longer_one_dropped(site, sources, tmp_path, more, requests):
    url = site.serves("/set.zip", content(ZIP))
    sources["set"] = zipped(url, md5=MD5)
    (tmp_path / "set.zip.partial").write_bytes(ZIP + bytes(more))
    (tmp_path / "set.zip.origin").write_text(f'{url}\n"one"')
    assert fetch("set", tmp_path, progress=False).read_text() == EXPECTED
    assert [wanted for _, wanted in site.asked] == [f"bytes={len(ZIP) + more}-", None][:requests]


@pytest.mark.parametrize("origin", ["", "another", '{url}\nW/"weak"\n', "\udcff", "{url}\n"])
def test_a_partial_of_unknown_origin_starts_again(site, sources, tmp_path, origin):
    url = site.serves("/set.zip", content(ZIP))
    sources["set"] = zipped(url, md5=MD5)
    (tmp_path / "set.zip.partial").write_bytes(b"PK\x03\x04 something else")
    (tmp_path / "set.zip.origin").write_bytes(origin.format(url=url).encode("utf-8", "surrogateescape"))
    assert fetch("set", tmp_path, progress=False).read_text() == EXPECTED
    assert site.asked == [("/set.zip", None)]


def test_a_file_that_changed_meanwhile_starts_again(site, sources, tmp_path):
    url = site.serves("/set.zip", content(ZIP, cut=(10_000, len(ZIP)), tag=('"one"', '"two"')))
    sources["set"] = zipped(url, md5=MD5)
    assert fetch("set", tmp_path, progress=False).read_text() == EXPECTED
    assert (tmp_path / "set.zip").read_bytes() == ZIP
    assert [wanted for _, wanted in site.asked] == [None, "bytes=10000-"]


@pytest.mark.parametrize(("ranges", "tag", "second"), [(False, '"one"', "bytes=10000-"), (True, 'W/"one"', None)])
def test_without_ranges_or_a_strong_tag_it_starts_again(site, sources, tmp_path, ranges, tag, second):
    url = site.serves("/set.zip", content(ZIP, cut=(10_000, len(ZIP)), ranges=ranges, tag=(tag,)))
    sources["set"] = zipped(url, md5=MD5)
    assert fetch("set", tmp_path, progress=False).read_text() == EXPECTED
    assert (tmp_path / "set.zip").read_bytes() == ZIP
    assert [wanted for _, wanted in site.asked] == [None, second]


def test_another_range_than_asked_for_starts_again(site, sources, tmp_path):
    def answer(handler: BaseHTTPRequestHandler) -> None:
        if handler.headers["Range"]:
            status(206, Content_Range=f"bytes 5-{len(ZIP) - 1}/{len(ZIP)}")(handler)
            handler.wfile.write(ZIP[5:])
        else:
            content(ZIP, cut=(10_000,) if len(site.asked) == 1 else ())(handler)

    sources["set"] = zipped(site.serves("/set.zip", answer), md5=MD5)
    assert fetch("set", tmp_path, progress=False).read_text() == EXPECTED
    assert [wanted for _, wanted in site.asked] == [None, "bytes=10000-", None]


def test_a_busy_server_is_asked_again(site, sources, tmp_path):
    def answer(handler: BaseHTTPRequestHandler) -> None:
        (content(ZIP) if len(site.asked) == 3 else status(503))(handler)

    sources["set"] = zipped(site.serves("/set.zip", answer), md5=MD5)
    assert fetch("set", tmp_path, progress=False).read_text() == EXPECTED


# ---------------------------------------------------------------- mirrors


def test_the_second_mirror_serves_what_the_first_has_not(site, sources, tmp_path):
    sources["set"] = zipped(f"{site.url}/gone/set.zip", site.serves("/set.zip", content(ZIP)), md5=MD5)
    assert fetch("set", tmp_path, progress=False).read_text() == EXPECTED
    assert [path for path, _ in site.asked] == ["/gone/set.zip", "/set.zip"]


def test_a_wrong_file_sends_to_the_second_mirror(site, sources, tmp_path):
    damaged = ZIP[:500] + b"?" + ZIP[501:]
    first = site.serves("/old/set.zip", content(damaged))
    sources["set"] = zipped(first, site.serves("/set.zip", content(ZIP)), md5=MD5)
    assert fetch("set", tmp_path, progress=False).read_text() == EXPECTED
    assert (tmp_path / "set.zip").read_bytes() == ZIP


def test_nowhere_names_every_mirror_and_the_way_by_hand(site, sources, tmp_path):
    sources["set"] = zipped(f"{site.url}/a/set.zip", f"{site.url}/b/set.zip")
    line = refusal("set", tmp_path)
    assert f"{site.url}/a/set.zip: HTTP 404 Not Found; {site.url}/b/set.zip: HTTP 404 Not Found" in line
    assert f"download {site.url}/a/set.zip yourself, save it as {tmp_path / 'set.zip'}" in line
    assert len(site.asked) == 2  # a missing file isn't asked for again
    assert left_in(tmp_path) == set()


def test_no_network_is_one_line(site, sources, tmp_path):
    with socket.socket() as taken:  # bound but not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/set.zip"
        sources["set"] = zipped(url)
        line = refusal("set", tmp_path)
    assert "Connection refused" in line
    assert f"download {url} yourself, save it as {tmp_path / 'set.zip'} and run again" in line


# ---------------------------------------------------------------- wrong and hostile answers


@pytest.mark.parametrize(
    ("answer", "size", "reason"),
    [
        (content(PAGE), None, "is not a zip file but a web page"),
        (content(b"Not the file\n" * 9), None, "is not a zip file but something else"),
        (content(ZIP[:-10]), len(ZIP), f"offers {len(ZIP) - 10:,} bytes, not {len(ZIP):,}"),
        (content(ZIP, length=len(ZIP) + 7, ranges=False), None, f"of {len(ZIP) + 7:,} bytes"),
        (content(ZIP[:-10], length=None, ranges=False), len(ZIP), f"broke off after {len(ZIP) - 10:,} of"),
        (content(ZIP + b"more", length=None), len(ZIP), f"sends more than {len(ZIP):,} bytes"),
        (content(ZIP, length=1 << 50), None, "offers 1,125,899,906,842,624 bytes, not at most 8,589,934,592"),
        (content(b""), None, "broke off"),
        (status(204), None, "broke off"),
        (lambda handler: handler.wfile.write(b"HTTP/1.0 404 \x1b[2J Gone\r\n\r\n"), None, "404 [2J Gone)"),
        (lambda handler: handler.wfile.write(b"no HTTP at all"), None, "no HTTP at all"),
        (status(200, Content_Length="many"), None, "broke off"),
        (status(416, Content_Range="bytes */0"), None, "HTTP 416"),
        (status(302, Location="file:///etc/passwd"), None, "'file:///etc/passwd' is not allowed"),
        (status(302, Location="ftp://127.0.0.1/set.zip"), None, "ftp://127.0.0.1/set.zip is not allowed"),
        (status(302, Location="data:application/zip,PK"), None, "is not allowed"),
        (status(302, Location="/set.zip"), None, "infinite loop"),
        (content(zip_of(other=b"1")), None, "is damaged or another file"),
        (content(ZIP[:-30]), None, "is damaged or another file"),
        (content(ZIP[:500] + b"?" + ZIP[501:]), None, "Bad CRC-32"),
        (content(b"PK\x03\x04" + bytes(1000)), None, "is damaged or another file"),
    ],
)  # fmt: skip
def test_a_wrong_answer_is_named_and_leaves_no_file(site, sources, tmp_path, answer, size, reason):
    sources["set"] = zipped(site.serves("/set.zip", answer), size=size)
    assert reason in refusal("set", tmp_path)
    assert left_in(tmp_path) <= {"set.zip.partial", "set.zip.origin"}


def test_a_wrong_checksum_leaves_nothing(site, sources, tmp_path):
    sources["set"] = zipped(site.serves("/set.zip", content(ZIP)), md5="0" * 32)
    assert "has a different MD5 than the published file" in refusal("set", tmp_path)
    assert left_in(tmp_path) == set()
    assert len(site.asked) == 1


@pytest.mark.parametrize("body", [GZIP[:-9], GZIP[:1000] + b"????" + GZIP[1004:], PAGE])
def test_a_damaged_gzip_is_refused(site, sources, tmp_path, body):
    sources["toys"] = Source((site.serves("/reviews.json.gz", content(body)),))
    refusal("toys", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".reviews.json.gz.lock"}


def test_an_endless_body_is_cut(site, sources, tmp_path, monkeypatch):
    def answer(handler: BaseHTTPRequestHandler) -> None:
        status(200)(handler)
        try:
            while True:
                handler.wfile.write(ZIP)
        except OSError:
            pass

    monkeypatch.setattr(module, "LARGEST_DOWNLOAD", 1 << 20)
    sources["set"] = zipped(site.serves("/set.zip", answer))
    assert "sends more than 1,048,576 bytes" in refusal("set", tmp_path)
    assert left_in(tmp_path) == set()


@pytest.mark.parametrize("member", ["set/ratings.dat", None])
def test_a_file_that_unpacks_without_end_is_refused(site, sources, tmp_path, monkeypatch, member):
    monkeypatch.setattr(module, "LARGEST_UNPACKED", 1 << 16)
    url = site.serves("/set.zip", content(ZIP if member else GZIP))
    sources["set"] = Source((url,), member=member, separator=b"::")
    assert "unpacks to more than 65,536 bytes" in refusal("set", tmp_path)


def test_a_redirect_on_the_web_is_followed(site, sources, tmp_path):
    site.serves("/new/place.zip", content(ZIP))
    sources["set"] = zipped(site.serves("/set.zip", status(302, Location="/new/place.zip")), md5=MD5)
    assert fetch("set", tmp_path, progress=False).read_text() == EXPECTED


def test_no_redirect_from_an_encrypted_to_an_open_connection():
    asked = module.request.Request("https://example.org/set.zip")
    follow = module._WebOnly().redirect_request
    with pytest.raises(module.HTTPError, match="is not allowed"):
        follow(asked, io.BytesIO(), 302, "Found", {}, "http://example.org/")
    assert follow(asked, io.BytesIO(), 302, "Found", {}, "https://example.org/") is not None


def test_members_with_evil_names_stay_in_the_zip(site, sources, tmp_path):
    evil = {"../evil": b"1", "/evil": b"1", "set/../../evil": b"1", "set/ratings.dat": text_of("::")}
    folder = tmp_path / "deep" / "folder"
    sources["set"] = zipped(site.serves("/set.zip", content(zip_of(**evil))))
    assert fetch("set", folder, progress=False).read_text() == EXPECTED
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {
        "set.csv",
        "set.zip",
        ".set.zip.lock",
    }


def test_ratings_of_other_columns_are_refused(site, sources, tmp_path):
    body = zip_of(**{"set/ratings.dat": b"1,2,3,4\n"})
    sources["set"] = zipped(site.serves("/set.zip", content(body)))
    assert "does not have four columns in set/ratings.dat" in refusal("set", tmp_path)
    assert not (tmp_path / "set.csv").exists()


# ---------------------------------------------------------------- files placed by hand, names, folders


def test_a_file_placed_by_hand_is_used(site, sources, tmp_path):
    sources["set"] = zipped(f"{site.url}/set.zip", size=len(ZIP), md5=MD5)
    sources["toys"] = Source((f"{site.url}/reviews_5.json.gz",))
    (tmp_path / "set.zip").write_bytes(ZIP)
    (tmp_path / "reviews_5.json.gz").write_bytes(GZIP)
    assert fetch("set", tmp_path, progress=False).read_text() == EXPECTED
    assert fetch("toys", tmp_path, progress=False).read_bytes() == GZIP
    assert site.asked == []


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (PAGE, "is not a zip file but a web page"),
        (b"", "is not a zip file but something else"),
        (ZIP[:-1], f"has {len(ZIP) - 1:,} bytes, but the published file has {len(ZIP):,}"),
        (ZIP[:500] + b"?" + ZIP[501:], "has a different MD5"),
    ],
)
def test_a_wrong_file_placed_by_hand_is_named_and_kept(site, sources, tmp_path, body, reason):
    sources["set"] = zipped(f"{site.url}/set.zip", size=len(ZIP), md5=MD5)
    (tmp_path / "set.zip").write_bytes(body)
    line = refusal("set", tmp_path)
    assert line.startswith(f"{tmp_path / 'set.zip'}: {reason}")
    assert f"put {site.url}/set.zip there" in line
    assert (tmp_path / "set.zip").read_bytes() == body


def test_an_unknown_name_lists_those_that_exist(tmp_path):
    line = refusal("ml-2m", tmp_path)
    assert all(name in line for name in ("ml-100k", "ml-25m", "amazon-beauty"))


def test_a_folder_that_cannot_be_written_is_one_line(site, sources, tmp_path):
    sources["set"] = zipped(site.serves("/set.zip", content(ZIP)))
    (tmp_path / "file").write_text("")
    assert f"{tmp_path / 'file'}: is a file; name a folder" in refusal("set", tmp_path / "file")
    assert "cannot be written" in refusal("set", tmp_path / "file" / "below")
    assert site.asked == []


def test_a_full_disk_is_one_line(site, sources, tmp_path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, block: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    opened = Path.open

    def open_full(path: Path, mode: str = "r", *args: object, **options: object) -> object:
        full = mode == "ab" and path.suffix == ".partial"
        return Full() if full else opened(path, mode, *args, **options)

    monkeypatch.setattr(Path, "open", open_full)
    sources["set"] = zipped(site.serves("/set.zip", content(ZIP)))
    assert "no space left on the disk" in refusal("set", tmp_path)
    assert len(site.asked) == 1


def test_the_table_is_well_formed():
    files = [source.urls[0].rsplit("/", 1)[-1] for source in SOURCES.values()]
    assert len(set(files)) == len(files)
    for name, source in SOURCES.items():
        assert len({url.rsplit("/", 1)[-1] for url in source.urls}) == 1
        assert source.md5 is None or len(bytes.fromhex(source.md5)) == 16
        assert (source.member is None) == name.startswith("amazon-")
        # without a checksum nothing but TLS says whose bytes these are
        assert source.md5 or all(url.startswith("https://") for url in source.urls)


def test_systems_without_fcntl(tmp_path):
    """As on Windows: the package is imported, and a file that is there is found, without locks between processes."""
    code = (
        "import sys; sys.modules['fcntl'] = None; import seqrec; from seqrec.data import fetch\n"
        "from pathlib import Path\n"
        "with fetch._locked(Path(sys.argv[1]) / 'lock', False): print('in')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "in\n", "")
