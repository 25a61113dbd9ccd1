"""Text read in blocks gives what the whole file at once gives: every block size, every odd file."""

import gzip
import io
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqrec.data.formats import blanks, delimited, frames
from seqrec.data.formats import blocks as source_module
from seqrec.data.formats.blocks import Unsafe, check_block, open_source, read_blocks
from seqrec.data.formats.read import read_log
from seqrec.errors import InputError

LINES = [f"{n % 7},{n % 11},{1000 + n}" for n in range(30)]
HEADER = "user_id,item_id,timestamp"


def csv_of(lines, header=HEADER, end="\n") -> str:
    return end.join([header, *lines] if header else lines) + end


def late(line: str, **options) -> str:
    """The log with one other line near its end."""
    return csv_of([*LINES[:25], line, *LINES[25:]], **options)


TRICKY = {
    "plain": csv_of(LINES),
    "no header": csv_of(LINES, header=None),
    "no last line end": csv_of(LINES).strip(),
    "blank lines and blanks at the ends": "\n \n" + csv_of(LINES) + "\n \r\n  \n",
    "CRLF": csv_of(LINES, end="\r\n"),
    "CRLF and blank lines": csv_of(LINES, end="\r\n\r\n"),
    "byte order mark": "\ufeff" + csv_of(LINES),
    "gaps": csv_of(LINES, end="\n\n\n"),
    "a carriage return in a field": late("1,a\rb,5"),
    "a carriage return after a line": late("\r1,5,5"),
    "text id late": late("x,3,4"),
    "text id first": csv_of(["x,3,4", *LINES]),
    "zeros late": late("007,3,4"),
    "sign late": late("+7,-0,4"),
    "blank late": late(" 7, 3,4"),
    "blank after separators": csv_of(line.replace(",", ", ") for line in LINES),
    "too large late": late("9223372036854775808,3,4"),
    "limits": csv_of(["9223372036854775807,-9223372036854775808,4", *LINES]),
    "float time late": late("1,3,4.5"),
    "date late": late("1,3,2020-01-01"),
    "dates": csv_of(f"{n % 7},{n % 11},2024-01-{n % 28 + 1:02}T10:00:00Z" for n in range(30)),
    "milliseconds": csv_of(f"1,{n},16000000{n % 10}0{n:03}" for n in range(30)),
    "a number of another unit": late("1,3,16000000000000"),
    "no number": late("1,3,soon"),
    "no number first": csv_of(["1,3,soon", *LINES]),
    "large number": late("1,3,9100000000000000000"),
    "empty id": late(",3,4"),
    "empty time": late("1,3,"),
    "nan id": late("nan,3,4"),
    "all empty": late(",,"),
    "quotes": csv_of((f'"{n % 7}","{n % 11}",{n}' for n in range(30)), header='"user_id","item_id","timestamp"'),
    "quotes and CRLF": csv_of((f'"{n}","x",{n}' for n in range(30)), end="\r\n"),
    "quotes late": late('"a, ""b""",3,4'),
    "quotes with line ends": csv_of(f'"a\n\n{n}","{n},\n""x""\r\n",{n}' for n in range(30)),
    "quotes with line ends late, gaps": late('"a\nb",3,4\n'),
    "quotes late, all empty": late('"a",3,4\n,,'),
    "quotes and a first row of nothing": csv_of(['"a",3,4', "", "1,2,3"], header=",,"),
    "quote inside of a field": late('5" disc,3,4'),
    "two quotes inside of fields": late('5" disc,3" disc,4'),
    "quote after a blank": late('1, "3",4'),
    "text after a quote": late('"1"x,3,4'),
    "open quote": late('"1,3,4'),
    "open quote early": csv_of(['1,"3,4', *LINES]),
    "empty quotes": late('1,"",4'),
    "short row late": late("1,3"),
    "short row after blank lines": late("\n\n1,3"),
    "short row in a file with quotes": late('"a\nb",3,4\n1,3'),
    "long row late": late("1,3,4,5"),
    "long row, then short": late("1,3,4,5\n1"),
    "blank line of blanks": late("   "),
    "blank line of blanks, quotes after": late('   \n"1",3,4'),
    "missing notes": csv_of(["1,2,3,", "1,2,4,x", '1,2,5,""'] * 9, header=HEADER + ",note"),
    "extra columns": csv_of(["1,2,3,4,01", "1,2,4,,2"] * 9 + ["1,2,3,5.5,3"], header=HEADER + ",price,zip"),
    "extra column of numbers": csv_of(["1,2,3,4", "1,2,4,5", "1,2,4,"] * 9, header=HEADER + ",price"),
    "ratings": csv_of([f"{line},4.5" for line in LINES], header=HEADER + ",rating"),
    "whole ratings": csv_of(["1,2,3", "1,4,3", "2,2,5"] * 9, header=None),
    "a bad rating": csv_of([*LINES, "1,2,good"], header="user_id,item_id,rating"),
    "a large rating": csv_of([*LINES, "1,2,9100000000000000000"], header="user_id,item_id,rating"),
    "a word above numbers": csv_of(["ann,10", "bob,11"] * 9, header="who,what"),
    "one row": csv_of(["1,2,3"]),
    "only a header": HEADER + "\n",
    "only a header and blanks": HEADER + "\n\n \n",
    "long lines": csv_of(f"1,{n},{n},{'x' * 50}" for n in range(9)).replace("timestamp", "timestamp,note", 1),
    "semicolons": csv_of(LINES).replace(",", ";"),
    "movielens": csv_of(LINES, header=None).replace(",", "::"),
    "tabs": csv_of(LINES).replace(",", "\t"),
    "tabs, quotes that quote nothing": late('5" disc,"a,4').replace(",", "\t"),
    "tabs, quotes": late('"a\tb","a\nb",4').replace(",", "\t"),
    "tabs, open quote and a short row": late('"a,3\n1').replace(",", "\t"),
    "whitespace": csv_of(LINES).replace(",", "  "),
    "whitespace, no header": csv_of(LINES, header=None, end=" \n\n  ").replace(",", " \t"),
    "whitespace, CRLF": csv_of(LINES, header=None, end="\r\n").replace(",", " "),
    "whitespace, form feed": csv_of(LINES, header=None).replace(",", " ") + "\x0c\n",
    "whitespace, pairs": "".join(f"{n % 5} {n}\n" for n in range(30)),
    "whitespace, text late": "".join(f"{n % 5} {n}\n" for n in range(30)) + "x y\n1 2\n",
    "whitespace, one field late": late("1", header=None).replace(",", " "),
    "whitespace, other width late": late("1,2,3,4", header=None).replace(",", " "),
    "sequences": "".join(f"{n} {n} {n + 1}" + f" {n}" * (n % 4) + "\n" for n in range(30)),
    "sequences, text late": "".join(f"{n} {n} {n + 1}" + f" {n}" * (n % 4) + "\n" for n in range(30)) + "a 3 b 4 c\n",
    "sequences, a user twice far off": "".join(f"{n % 29} 7 8 9\n" for n in range(30)),
    "sequences, each user once": "".join(f"{n} 7 8 9\n" for n in range(30)),
    "binary late": late("1,\0,3"),
    "a short row, binary after": late("1,3\n\0"),
}


def outcome(path: Path, monkeypatch, size: int | None, **options):
    """Types and rows, or the error; read in blocks of this size, or whole."""

    def unsafe(*arguments, **more):
        raise Unsafe

    with monkeypatch.context() as patch:
        if size is None:
            patch.setattr(blanks, "check_block", unsafe)
            patch.setattr(delimited, "check_block", unsafe)
        else:
            patch.setattr(source_module, "BLOCK_BYTES", size)
            patch.setattr(delimited, "BLOCK_BYTES", size)
        try:
            frame = read_log(path, **options)
        except InputError as error:
            return str(error)
    return dict(frame.schema), frame.rows()


@pytest.mark.slow_but_one
@pytest.mark.filterwarnings("ignore::seqrec.errors.LogWarning")
@pytest.mark.parametrize(
    ("case", "zipped"), [*((case, False) for case in TRICKY), *((case, True) for case in [*TRICKY][::4])]
)
def test_blocks_give_what_the_whole_gives(tmp_path, monkeypatch, case, zipped):
    raw = TRICKY[case].encode()
    path = tmp_path / ("log.gz" if zipped else "log")
    path.write_bytes(gzip.compress(raw) if zipped else raw)
    expected = outcome(path, monkeypatch, None)
    for size in (64,) if zipped else (1, 64, 150):
        assert outcome(path, monkeypatch, size) == expected, size


def test_of_long_lines_few_are_enough_of_a_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(source_module, "SAMPLE_BYTES", 16)
    read = []

    def counted(source, size):
        for piece in pieces(source, size):
            read.append(len(piece))
            yield piece

    pieces = source_module.read_pieces
    monkeypatch.setattr(source_module, "read_pieces", counted)
    path = tmp_path / "log.txt"
    long = [f"{user} " + "7 " * 50 + "8" for user in range(1000)]
    for start in ("", "\n   \n\n" + " " * 40 + "\n"):
        read.clear()
        path.write_text(start + "\n".join(long))
        sample = source_module.read_sample(open_source(path))
        assert 5 < len(sample) < 12
        assert sample == long[: len(sample)]
        assert sum(read) < 2000
    path.write_text("1 2\n" + "\n".join(long))
    assert source_module.read_sample(open_source(path)) == ["1 2"]
    path.write_text(long[0])
    assert source_module.read_sample(open_source(path)) == long[:1]


@pytest.mark.parametrize("size", [1, 64])
def test_latin_1_late(tmp_path, monkeypatch, size):
    path = tmp_path / "log.csv"
    path.write_bytes(late("Jos\xe9,3,4").encode("latin-1") + b"1,2\n")
    message = outcome(path, monkeypatch, size)
    assert message == outcome(path, monkeypatch, None)
    assert "line 27: is not UTF-8" in message


@pytest.mark.parametrize("size", [1, 64])
@pytest.mark.parametrize(
    ("name", "line"),
    [("short row late", 27), ("short row in a file with quotes", 29), ("no number", 27), ("empty id", 27)],
)
def test_the_line_of_an_error_late_in_the_file(tmp_path, monkeypatch, name, line, size):
    path = tmp_path / "log.csv"
    path.write_text(TRICKY[name])
    assert f"log.csv, line {line}: " in outcome(path, monkeypatch, size)


@pytest.mark.parametrize("size", [64, None])
def test_a_cut_off_gzip_file(tmp_path, monkeypatch, size):
    path = tmp_path / "log.csv.gz"
    path.write_bytes(gzip.compress(late("1,2").encode())[:-12])
    assert "damaged or cut-off gzip" in outcome(path, monkeypatch, size)


def test_gzip_of_several_members(tmp_path, monkeypatch):
    path = tmp_path / "log.csv.gz"
    text = csv_of(LINES).encode()
    path.write_bytes(gzip.compress(text[:333]) + gzip.compress(text[333:]))
    assert outcome(path, monkeypatch, 64)[1] == [tuple(map(int, line.split(","))) for line in LINES]


# What a value may be: mostly integers, now and then what is none, or is not written as one.
integers = st.integers(-(2**63), 2**63 - 1).map(str) | st.integers(0, 20).map(str)
odd = st.sampled_from(["007", "+5", "-0", " 3", "3 ", "1.5", "nan", "x", 'a"b', '"q"', '"a\nb"', '"a,""b"', '""', "ü"])
rows = st.lists(st.tuples(integers | odd, integers | odd, integers), min_size=1, max_size=12)
ends = st.sampled_from(["\n", "\n", "\n", "\r\n", "\n\n", "\n \n"])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=rows, end=ends, header=st.booleans(), size=st.integers(1, 80))
@pytest.mark.slow
def test_any_log_in_any_blocks(tmp_path, monkeypatch, rows, end, header, size):
    path = tmp_path / "log.csv"
    lines = [",".join(row) for row in rows]
    path.write_text(csv_of(lines, HEADER if header else None, end), newline="")
    options = {"format": "csv", "user": None if header else "1", "item": None if header else "2"}
    assert outcome(path, monkeypatch, size, **options) == outcome(path, monkeypatch, None, **options)


@settings(max_examples=80, deadline=None)
@given(fields=st.lists(st.lists(st.text('a",\n\r', max_size=4), min_size=2, max_size=2), min_size=1, max_size=8))
def test_well_formed_quotes_are_safe_in_any_blocks(fields):
    """Each block of a file that polars wrote is read alone as it stands in the file."""
    buffer = io.BytesIO()
    pl.DataFrame(fields, schema=["a", "b"], orient="row").write_csv(buffer, quote_style="always")
    text = buffer.getvalue()
    if text.count(b"\r") != text.count(b"\r\n"):
        return
    check_block(text, ",", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source_module, "BLOCK_BYTES", 1)
        blocks = list(read_blocks(source_module.Source(Path("log"), text), True, True))
    assert b"".join(blocks) == text.strip(b"\r\n ")
    assert all(block.count(b'"') % 2 == 0 for block in blocks)


def test_integers_are_kept_as_such_and_not_as_text(tmp_path):
    frame = frames.read_text(write(tmp_path, late("1,03,4")), "csv", {})[0]
    assert frame.dtypes == [pl.Int64, pl.String, pl.Int64]
    assert frame["item_id"][25] == "03"


@given(st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), max_size=20))
def test_digits(numbers):
    values = pl.Series(numbers, dtype=pl.Int64)
    assert delimited._digits(values) == sum(len(str(number)) for number in numbers if number is not None)


@settings(max_examples=100)
@given(st.lists(st.none() | integers | odd | st.from_regex(r"[+-]?0*[0-9]{1,20}", fullmatch=True), max_size=5))
def test_a_column_becomes_integers_only_where_it_can_become_the_same_text_again(values):
    text = pl.DataFrame({"1": pl.Series(values, dtype=pl.String)})
    shrunk = delimited.shrunk(text)
    assert shrunk.cast(pl.String).equals(text)
    given_back = text.select(pl.all().cast(pl.Int64, strict=False).cast(pl.String))
    assert (shrunk.dtypes == [pl.Int64]) == given_back.equals(text)


def write(folder: Path, content: str):
    path = folder / "log.csv"
    path.write_text(content)
    return open_source(path)


def test_small_files_and_pipes_are_kept(tmp_path, monkeypatch):
    assert write(tmp_path, csv_of(LINES)).content is not None
    monkeypatch.setattr(source_module, "BLOCK_BYTES", 10)
    assert write(tmp_path, csv_of(LINES)).content is None
