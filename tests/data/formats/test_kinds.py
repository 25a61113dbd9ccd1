"""Files that are not logs, despite their names: the error says what they look like."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import sqlite3
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.feather
import pyarrow.orc
import pytest

from seqrec.data.formats.read import read_log
from seqrec.errors import InputError

LOG = b"user_id,item_id\n1,2\n1,3\n"
FRAME = pl.DataFrame({"user_id": [1, 1], "item_id": [2, 3]})


def written(write) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def zipped(buffer: io.BytesIO) -> None:
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("log.csv", LOG)


def tarred(buffer: io.BytesIO) -> None:
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("log.csv")
        entry.size = len(LOG)
        archive.addfile(entry, io.BytesIO(LOG))


def database() -> bytes:
    base = sqlite3.connect(":memory:")
    base.execute("create table log (user_id, item_id)")
    return base.serialize()


KINDS = {
    "page": (b"<!DOCTYPE html><html><body>404</body></html>", "a web page"),
    "page, blanks above": (b"\n\n  <HTML lang='en'>\n<head>", "a web page"),
    "xml": (b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>', "XML"),
    "xml without a declaration": (b"<log>\n<row user='1' item='2'/>\n</log>", "XML"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg">\n</svg>', "XML"),
    "page in UTF-16": ("<html>\n<body>404</body></html>".encode("utf-16"), "a web page"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 12345\n", "a Git LFS pointer"),
    "git-annex": (b"/annex/objects/SHA256E-s1--0.csv\n", "a git-annex pointer"),
    "DVC": (b"outs:\n- md5: 0a\n  path: log.csv\n", "a DVC pointer"),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "a PDF document"),
    "zip": (written(zipped), "a zip archive or an Excel workbook"),
    "tar": (written(tarred), "a tar archive"),
    "bzip2": (bz2.compress(LOG), "compressed with bzip2"),
    "xz": (lzma.compress(LOG), "compressed with xz"),
    "zstd": (pa.compress(LOG, "zstd", asbytes=True), "compressed with zstd"),
    "gzip twice": (gzip.compress(gzip.compress(LOG)), "gzipped twice"),
    "zip in gzip": (gzip.compress(written(zipped)), "a zip archive"),
    "JSON array": (b'[{"user_id": 1, "item_id": 2}]', "a JSON array"),
    "JSON array over lines": (b'[\n  {\n    "user_id": 1\n  }\n]', "a JSON array"),
    "notebook": (json.dumps({"cells": [{"cell_type": "code"}], "nbformat": 4}, indent=1).encode(), "a Jupyter"),
    **{f"pickle {number}": (pickle.dumps(FRAME.to_dicts(), number), "a Python pickle") for number in range(2, 6)},
    "sqlite": (database(), "an SQLite database"),
    "numpy": (written(lambda file: np.save(file, np.arange(6).reshape(3, 2))), "a numpy array"),
    "numpy, several": (written(lambda file: np.savez(file, a=np.arange(6))), "a zip archive"),
    "Arrow": (written(FRAME.write_ipc), "an Arrow or Feather file"),
    "Avro": (written(FRAME.write_avro), "an Avro file"),
    "ORC": (written(lambda file: pa.orc.write_table(FRAME.to_arrow(), file)), "an ORC file"),
    "PNG": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "a PNG image"),
    "JPEG": (b"\xff\xd8\xff\xe0\0\x10JFIF", "a JPEG image"),
    "key": (b"-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\n", "a key or a certificate"),
    "SQL": (b"-- MySQL dump 10.13\nCREATE TABLE log (a int);\n", "an SQL dump"),
    "script": (b"#!/bin/sh\necho 1 2\n", "a script"),
    "web server": (b'1.2.3.4 - - [10/Oct/2000:13:55:36 -0700] "GET /a HTTP/1.0" 200 23\n', "a web server's log"),
    "Matrix Market": (b"%%MatrixMarket matrix coordinate integer general\n2 2 1\n1 1 5\n", "a Matrix Market file"),
}  # fmt: skip


@pytest.mark.parametrize("name", ["log.csv", "log", "log.jsonl", "log.parquet", "log.csv.gz"])
@pytest.mark.parametrize("case", KINDS)
def test_what_is_no_log(tmp_path: Path, case: str, name: str) -> None:
    content, kind = KINDS[case]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_log(path)
    message = str(caught.value)
    if case == "page in UTF-16" and name == "log.csv.gz":
        kind = "is named .gz but is not gzipped"
    else:
        assert message.startswith(f"{path}: looks like ")
    assert kind in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "text",
    [
        "ORCID,user,item\n1,2,3\n", "PARENT,user,item\n1,2,3\n", "BZh,user,item\n1,2,3\n", "GIF8,user,item\n1,2,3\n",
        "FEA1,user,item\n1,2,3\n", "<user>,<item>\n2,3\n", "<user> <item>\n2 3\n", "RDX,user,item\n1,2,3\n",
        '{"nbformat": "x", "user": 2, "item": 3}\n', '{"metadata": {"cell_type": 1}, "user": 2, "item": 3}\n',
    ],
)  # fmt: skip
def test_logs_that_begin_alike(tmp_path: Path, text: str) -> None:
    path = tmp_path / "log.txt"
    path.write_text(text)
    assert read_log(path)["user_id"].to_list() == [2]


def test_parquet_under_any_name(tmp_path: Path) -> None:
    for name in ("log.csv", "log.csv.gz", "log", "log.parquet.gz", "log.jsonl"):
        FRAME.write_parquet(tmp_path / name)
        assert read_log(tmp_path / name).equals(FRAME)


def test_json_lines_under_the_name_of_a_csv_file(tmp_path: Path) -> None:
    for name in ("log.csv", "log.tsv", "log.inter", "log"):
        FRAME.write_ndjson(tmp_path / name)
        assert read_log(tmp_path / name).equals(FRAME)
