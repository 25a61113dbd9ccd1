"""What stands above the log in a text file, and how its lines end."""

import csv
import gzip
import io
import warnings
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqrec.data.formats import blocks, delimited
from seqrec.data.formats.read import read_log
from seqrec.errors import InputError, LogWarning

HEADER = "user_id,item_id,timestamp\n"
ROWS = "u1,i1,1600000000\nu1,i2,1600000001\nu2,i1,1600000002\n"
READ = [("u1", "i1", 1600000000), ("u1", "i2", 1600000001), ("u2", "i1", 1600000002)]


def put(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def rows(path: Path, **options: str) -> list[tuple]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_log(path, **options).rows()


def error_of(path: Path, **options: str) -> str:
    with pytest.raises(InputError) as caught:
        read_log(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.slow_but_one
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["a.csv", "a.txt", "a", "a.csv.gz"])
@pytest.mark.parametrize(
    ("line", "separator"),
    [
        ("sep=;", ";"),
        ("sep=,", ","),
        ("SEP=|", "|"),
        ('"sep=;"', ";"),
        ("sep=;,,", ";"),
        ("sep=:", ":"),
        ("sep=\t", "\t"),
    ],
)
def test_the_line_of_the_separator_that_excel_writes(
    tmp_path: Path, line: str, separator: str, name: str, ends: str
) -> None:
    for header in (HEADER, ""):
        text = f"{line}\n" + (header + ROWS).replace(",", separator)
        assert rows(put(tmp_path, name, text.replace("\n", ends))) == READ


def test_lines_of_errors_below_the_line_of_the_separator(tmp_path: Path) -> None:
    text = "\n\nsep=;\n" + (HEADER + ROWS).replace(",", ";")
    assert "a.csv, line 8: too few fields (2, not 3)" in error_of(put(tmp_path, "a.csv", text + "u;i\n"))
    assert "a.csv, line 8: timestamp 'x' is" in error_of(put(tmp_path, "a.csv", text + "u;i;x\n"))
    bad = put(tmp_path, "a.csv", "")
    bad.write_bytes(text.encode() + b"\xff;i;1\n")
    assert "a.csv, line 8: is not UTF-8" in error_of(bad)


@pytest.mark.parametrize(
    ("above", "name", "separator"),
    [
        ("# exported today", "a.csv", ","),
        ("# exported by someone, version 2, today\n#\n\n# more", "a.csv", ","),
        ("#exported", "a.csv", ";"),
        ("#exported, by", "a.csv", ","),
        ("% bip unweighted\n% 3 2 2", "out.x", " "),
        ("# Nodes: 2\n# FromNodeId\tToNodeId\tTime", "a.txt", "\t"),
        ("## a\n  # b", "a.tsv", "\t"),
        ("# a", "a.csv.gz", ","),
    ],
)
@pytest.mark.parametrize("header", [HEADER, ""])
def test_comments_above_the_log_are_left_out_and_said(
    tmp_path: Path, above: str, name: str, separator: str, header: str
) -> None:
    path = put(tmp_path, name, f"{above}\n" + (header + ROWS).replace(",", separator))
    with pytest.warns(LogWarning, match=rf"{name}: the lines above the log that begin with [#%] are skipped"):
        assert read_log(path).rows() == READ


@pytest.mark.filterwarnings("ignore::seqrec.errors.LogWarning")
def test_comments_above_json_lines(tmp_path: Path) -> None:
    path = put(tmp_path, "a.jsonl", '# a comment\n{"user": "u", "item": 1}\n{"user": "u", "item": }\n')
    assert "a.jsonl, line 3: not a JSON object" in error_of(path)


@pytest.mark.filterwarnings("ignore::seqrec.errors.LogWarning")
@pytest.mark.parametrize("size", [1, 64, 1 << 20])
def test_comments_in_any_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    for module in (blocks, delimited):
        monkeypatch.setattr(module, "BLOCK_BYTES", size)
    path = put(tmp_path, "a.csv", f"# {'x' * 300}\n\n# y\n{HEADER}{ROWS}")
    with pytest.warns(LogWarning):
        assert read_log(path).rows() == READ
    put(tmp_path, "a.csv", f"# {'x' * 300}\n\n# y\n{HEADER}{ROWS}u,i\n")
    assert "line 8: too few" in error_of(path)


def test_ids_that_begin_as_comments(tmp_path: Path) -> None:
    text = "#python,1,1600000000\n#ruby,2,1600000001\nx,2,1600000002\n"
    assert [row[0] for row in rows(put(tmp_path, "a.csv", text))] == ["#python", "#ruby", "x"]
    assert [row[0] for row in rows(put(tmp_path, "a.txt", "#a 1\n#b 2\n"))] == ["#a", "#b"]
    assert [row[1] for row in rows(put(tmp_path, "a.csv", "user,item\n1,#a\n1,#b\n"))] == ["#a", "#b"]


@pytest.mark.filterwarnings("ignore::seqrec.errors.LogWarning")
@pytest.mark.parametrize("header", ["#user_id,item_id,timestamp", "# user,item,time", "%user,item,time"])
def test_a_header_behind_a_comment_mark(tmp_path: Path, header: str) -> None:
    message = error_of(put(tmp_path, "a.csv", f"# first\n{header}\n{ROWS}"))
    assert "a.csv, line 2: looks like a header after" in message
    assert "remove the " in message


@pytest.mark.parametrize(
    ("name", "title", "separator"),
    [
        ("a.csv", "Sales report", ","),
        ("a.csv", "Sales report, 2024", ","),
        ("a.csv", "Sales report 2024", ";"),
        ("a.csv", '"Sales, and more"', ","),
        ("a.tsv", "Report", "\t"),
        ("a.txt", "Sales report 2024", ","),
        ("a.txt", "Report", "|"),
        ("a.dat", "Report", "::"),
    ],
)
@pytest.mark.parametrize("header", [HEADER, ""])
def test_a_title_is_blamed_and_not_the_line_below(
    tmp_path: Path, name: str, title: str, separator: str, header: str
) -> None:
    text = f"\n{title}\n\n" + (header + ROWS).replace(",", separator)
    assert f"{name}, line 2: " in error_of(put(tmp_path, name, text))


def test_a_header_of_another_width(tmp_path: Path) -> None:
    assert "line 1: 'user,item' has 2 fields and the lines below have 3" in error_of(
        put(tmp_path, "a.csv", "user,item\n1,2,3\n1,3,4\n")
    )
    assert "line 1: " in error_of(put(tmp_path, "a.csv", "user,item,time\n1,2\n1,3\n"))
    assert "line 2: too few fields" in error_of(put(tmp_path, "a.csv", "user,item,time\n1,2\n"))
    assert "line 3: too many fields" in error_of(put(tmp_path, "a.csv", "user,item\n1,2\n1,3,4\n"))


def test_no_title_where_there_is_none(tmp_path: Path) -> None:
    assert rows(put(tmp_path, "a.txt", "user item\n1 a|b\n2 c|d\n")) == [(1, "a|b"), (2, "c|d")]
    assert rows(put(tmp_path, "a.csv", "user,item,genres\n1,2,a|b\n1,3,c|d\n"))[0] == (1, 2, "a|b")
    assert rows(put(tmp_path, "a.txt", "1 2\n1 3,5\n2 4,5\n")) == [(1, "2"), (1, "3,5"), (2, "4,5")]


def test_a_rule_below_the_header(tmp_path: Path) -> None:
    text = "user_id,item_id\n-------,-------\n1,2\n1,3\n"
    assert "a.csv, line 2: is a line of hyphens" in error_of(put(tmp_path, "a.csv", text))


# ---- RecBole's sequences


@pytest.mark.parametrize(
    "header",
    [
        "session_id:token\titem_id_list:token_seq\titem_id:token",
        "user_id:token\titem_seq:token_seq\titem_id:token",
        "user_id:token\titem_id:token_seq",
    ],
)
def test_sequences_of_recbole_are_refused(tmp_path: Path, header: str) -> None:
    row = "\t".join(["0 1", "1 2", "3"][: header.count("\t") + 1])
    message = error_of(put(tmp_path, "a.inter", f"{header}\n{row}\n{row}\n"))
    assert "a.inter, line 1: column 'item" in message
    assert "one interaction per row" in message


def test_other_sequences_of_recbole_are_other_columns(tmp_path: Path) -> None:
    text = "user_id:token\titem_id:token\ttags:token_seq\n0\t1\tx y\n"
    assert rows(put(tmp_path, "a.inter", text)) == [(0, 1, "x y")]


def test_a_guess_of_sequences_is_said(tmp_path: Path) -> None:
    path = put(tmp_path, "a.txt", "The quick brown fox\njumps over the lazy dog\n")
    with pytest.warns(LogWarning, match="each line is read as a user and its items in order, a guess"):
        read_log(path)
    assert len(rows(path, format="sequences")) == 7
    assert len(rows(put(tmp_path, "b.txt", "1 2 3 4\n2 3\n"))) == 4


# ---- line ends

TEXTS = {
    "a.csv": HEADER + ROWS,
    "a.tsv": (HEADER + ROWS).replace(",", "\t"),
    "a.txt": ROWS.replace(",", " "),
    "a.inter": "user_id:token\titem_id:token\ttimestamp:float\n" + ROWS.replace(",", "\t"),
    "a.jsonl": "".join(
        f'{{"user": "{user}", "item": "{item}", "time": {time}}}\n' for user, item, time in READ
    ),
    "a.csv.gz": HEADER + ROWS,
}  # fmt: skip


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r", "\r\r\n", "\n\r\n"])
@pytest.mark.parametrize("name", TEXTS)
def test_line_ends(tmp_path: Path, name: str, ends: str) -> None:
    text = TEXTS[name].replace("\n", ends)
    for content in (text, text.removesuffix(ends)):
        assert rows(put(tmp_path, name, content)) == READ


def test_old_line_ends_of_long_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "SAMPLE_BYTES", 16)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 32)
    assert rows(put(tmp_path, "a.csv", (HEADER + ROWS).replace("\n", "\r"))) == READ
    assert "line 1: a carriage return" in error_of(put(tmp_path, "a.csv", (HEADER + ROWS).replace("\n", "\r", 3)))


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.txt", "a.inter", "a.jsonl", "a.csv.gz"])
def test_a_carriage_return_that_ends_no_line(tmp_path: Path, name: str) -> None:
    lines = TEXTS[name].splitlines()
    lines[-2:] = [lines[-2] + "\r" + lines[-1]]
    assert f"{name}, line {len(lines)}: " in error_of(put(tmp_path, name, "\n".join(lines) + "\n"))
    broken = TEXTS[name].replace("i2", "i\r2")
    number = broken[: broken.index("\r")].count("\n") + 1
    if name != "a.jsonl":
        assert f"{name}, line {number}: a carriage return" in error_of(put(tmp_path, name, broken))


def test_quoted_carriage_returns_are_part_of_an_id(tmp_path: Path) -> None:
    assert rows(put(tmp_path, "a.csv", 'user,item\r"a\rb",c\r')) == [("a\rb", "c")]
    assert rows(put(tmp_path, "a.csv", 'user,item\r\r\n"a\rb",c\r\r\n')) == [("a\rb", "c")]
    text = 'user,item\n"a\rb","c\r\n""d"\n"\re\r",f\n'
    assert rows(put(tmp_path, "a.csv", text)) == [("a\rb", 'c\r\n"d'), ("\re\r", "f")]
    assert "line 5: a carriage return" in error_of(put(tmp_path, "a.csv", text + "x\r,y\n"))


fields = st.text('a",;\n\r #', min_size=1, max_size=4).map(lambda text: f"x{text}x")


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(st.tuples(fields, fields), min_size=1, max_size=6), ends=st.sampled_from(["\n", "\r\n"]))
def test_any_quoted_fields_as_the_csv_module_has_them(tmp_path: Path, records: list, ends: str) -> None:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator=ends, quoting=csv.QUOTE_ALL).writerows([("user", "item"), *records])
    path = tmp_path / "a.csv"
    path.write_bytes(buffer.getvalue().encode())
    with path.open(newline="") as file:
        expected = [tuple(row) for row in csv.reader(file)][1:]
    assert read_log(path).cast(pl.String).rows() == expected == records


@pytest.mark.parametrize(("header", "rows"), [(",", ";"), (";", ","), ("\t", ",")])
def test_a_header_with_another_separator_is_told(header: str, rows: str, tmp_path: Path) -> None:
    lines = ["user_id,item_id,timestamp".replace(",", header)]
    lines += [f"u{n % 3},i{n},{1_600_000_000 + n}".replace(",", rows) for n in range(9)]
    path = tmp_path / "log.csv"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=r"line 1: .*; use one separator for all lines, where some have") as caught:
        read_log(path)
    assert repr(header) in str(caught.value)
    assert repr(rows) in str(caught.value)
