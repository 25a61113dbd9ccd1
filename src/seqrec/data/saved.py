"""The form of a Dataset on disk: a folder of memory-mapped .npy files, and dataset.json, which describes them.

``Dataset.save`` writes it, and training writes it to the folder ``data`` of a run. Opening reads dataset.json and the
headers of the arrays. Everything else is read, and compared with its checksum, when it is used.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from seqrec.data.checked import check_files, read_json, size_of
from seqrec.data.fields import check_fields
from seqrec.data.id_table import IdTable
from seqrec.data.items import ITEM_TABLE, ItemTable
from seqrec.data.mapped import Mapped, bytes_of, write_array
from seqrec.data.statistics import Statistics
from seqrec.data.table import AnyTable, load_table, save_table
from seqrec.data.users import USER_TABLE, UserTable
from seqrec.errors import InputError, one_line

FORMAT_VERSION = 2
FACTS = "dataset.json"
_ARRAYS = {"items": np.int32, "timestamps": np.int64, "offsets": np.int64}
_MET = {"met_items": np.int32, "met_offsets": np.int64}  # only if a filter dropped any
#: Sorted integers; or the bytes of texts, with the file that says where each text begins.
_IDS = {"user_ids": "user_id_offsets", "item_ids": "item_id_offsets"}
#: Names of all files that a saved dataset can have.
FILES = frozenset(f"{name}.npy" for name in (*_ARRAYS, *_MET, *_IDS, *_IDS.values())) | {FACTS, ITEM_TABLE, USER_TABLE}
FORMER_FILES = frozenset({"users.parquet", "items.parquet"})  # format 1
MOST_ROWS = 2**62


class Saved:
    """The files of a saved dataset.

    Args:
        folder: folder with the files.
        advice: advice in the error about a damaged file.

    Attributes:
        facts: content of dataset.json.
        arrays: memory-mapped arrays by name.
        users: table of user ids.
        catalogue: table of item ids.
        checked: whether the whole content was checked.
        is_temporary: whether the folder is removed after its use, so that another folder may take over its files.

    Raises:
        InputError: a file is missing, a symbolic link, differs in length or type from dataset.json, or has another
            format.
    """

    def __init__(self, folder: Path, advice: str) -> None:
        self.folder, self.advice, self.checked, self.is_temporary = folder, advice, False, False
        if not folder.is_dir():
            raise InputError(f"{folder}: is missing or not a folder; {advice}")
        check_files(folder, dict.fromkeys(FILES), advice)
        self.facts = read_json(folder / FACTS, advice)
        try:
            _check_facts(self.facts)
        except InputError as error:
            if str(error).startswith("format "):
                raise InputError(f"{folder / FACTS}: {error}; {advice}") from error
            raise self.damaged(one_line(error)) from error
        except LookupError as error:
            raise self.damaged(f"{error} is missing") from error
        interactions, users = self.facts["interactions"], self.facts["users"]
        self.arrays: dict[str, Mapped] = {}
        for name, dtype in (_ARRAYS | _MET).items():
            rows = None if name == "met_items" else users + 1 if name.endswith("offsets") else interactions
            if name in _ARRAYS or self._has("met_items") or self._has("met_offsets"):
                self.arrays[name] = self._open(name, dtype, rows)
        for name, offsets in _IDS.items():
            rows = self.facts[name.removesuffix("_ids") + "s"]
            if self._has(offsets):
                self.arrays[name] = self._open(name, np.uint8, None)
                self.arrays[offsets] = self._open(offsets, np.int64, rows + 1)
            else:
                self.arrays[name] = self._open(name, np.int64, rows)
        self.users, self.catalogue = (
            IdTable.mapped(name.removesuffix("s"), self.arrays[name], self.arrays.get(offsets))
            for name, offsets in _IDS.items()
        )
        self.item_table = self._table("item_table", ItemTable, ITEM_TABLE, self.catalogue)
        self.user_table = self._table("user_table", UserTable, USER_TABLE, self.users)

    def _table(self, name: str, kind: type[AnyTable], file: str, ids: IdTable) -> AnyTable | None:
        """A table, which is read at its first use; None if there is none."""
        if name not in self.facts:
            return None
        path, digest = self.folder / file, self.facts[name]
        size_of(path, self.advice)
        return kind(lambda: load_table(kind, path, ids.series, digest, self.advice).frame)

    def _has(self, name: str) -> bool:
        return name in self.facts["checksums"]

    def _open(self, name: str, dtype: Any, rows: int | None) -> Mapped:
        return Mapped(self.folder / f"{name}.npy", self.facts["checksums"].get(name), dtype, rows, self.advice)

    def fields(self) -> dict[str, Any]:
        """The arguments of :class:`seqrec.Dataset`."""
        before = self.facts["before"]
        return {
            **{name: self.arrays[name].array for name in (*_ARRAYS, *_MET) if name in self.arrays},
            "users": self.users,
            "catalogue": self.catalogue,
            "has_timestamps": self.facts["has_timestamps"],
            "before": None if before is None else Statistics(**before),
            "filters": self.facts["filters"],
            "item_table": self.item_table,
            "user_table": self.user_table,
            "saved": self,
        }

    def holds(self, fields: Mapping[str, Any]) -> bool:
        """Whether the arrays among a dataset's fields are the ones mapped from the files."""
        names = [name for name in (*_ARRAYS, *_MET) if name in self.arrays]
        return all(fields[name] is self.arrays[name].array for name in names)

    def put_into(self, folder: Path, name: str) -> str:
        """Give another folder the file of an array, without a copy if both are on one disk. Returns its checksums."""
        source, target = self.folder / f"{name}.npy", folder / f"{name}.npy"
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
        checksums: str = self.facts["checksums"][name]
        return checksums

    def damaged(self, why: str) -> InputError:
        """The error for files that differ from the ones that were saved."""
        return InputError(f"{self.folder}: is damaged ({why}); {self.advice}")


def check_replaced(folder: Path) -> None:
    """Raise if a folder for a dataset holds other files, which would be lost."""
    foreign = sorted(set(os.listdir(folder)) - FILES - FORMER_FILES) if folder.is_dir() else []
    if foreign:
        raise InputError(f"{folder}: holds other files ({foreign[0]}), which would be lost; give a new folder")


def write_files(folder: Path, fields: Mapping[str, Any], fingerprint: str) -> None:
    """Write the files of a dataset, given by its fields, to an existing, empty folder."""
    arrays = {name: fields[name] for name in (*_ARRAYS, *_MET) if fields[name] is not None}
    saved: Saved | None = fields.get("saved")
    if saved is not None and saved.is_temporary:
        checksums = {name: saved.put_into(folder, name) for name in arrays}
    else:
        checksums = {name: write_array(folder / f"{name}.npy", array) for name, array in arrays.items()}
    write_rest(folder, fields, len(arrays["items"]), fingerprint, checksums)


def write_rest(
    folder: Path, fields: Mapping[str, Any], interactions: int, fingerprint: str, checksums: dict[str, str]
) -> None:
    """Write the ids, the tables of items and users, and dataset.json of a dataset, beside its interactions.

    Args:
        folder: folder of the dataset, in which the files of the interactions are.
        fields: fields of the dataset; those that hold interactions are not used.
        interactions: number of interactions.
        fingerprint: digest of the dataset.
        checksums: checksums of the files of the interactions.
    """
    for field, name in (("users", "user_ids"), ("catalogue", "item_ids")):
        values, offsets = fields[field].arrays()
        checksums[name] = write_array(folder / f"{name}.npy", values)
        if offsets is not None:
            checksums[_IDS[name]] = write_array(folder / f"{_IDS[name]}.npy", offsets)
    facts = {
        "format_version": FORMAT_VERSION,
        "has_timestamps": fields["has_timestamps"],
        "interactions": interactions,
        "users": len(fields["users"]),
        "items": len(fields["catalogue"]),
        "fingerprint": fingerprint,
        "before": vars(fields["before"]) if fields["before"] else None,
        "filters": fields["filters"],
        "checksums": checksums,  # eight hexadecimal digits per block of each array
    }
    for name, file in (("item_table", ITEM_TABLE), ("user_table", USER_TABLE)):
        if fields[name] is not None:
            facts[name] = save_table(fields[name], folder / file)
    (folder / FACTS).write_text(json.dumps(facts, indent=2), encoding="utf-8")


def fingerprint_of(fields: Mapping[str, Any]) -> str:
    """Digest of the interactions and ids of a dataset, given by its fields. Costs one pass over the data."""
    return digest_of((bytes_of(fields[name]) for name in _ARRAYS), fields["users"], fields["catalogue"])


def digest_of(content: Iterable[bytes | memoryview], users: IdTable, catalogue: IdTable) -> str:
    """Digest of the content of the arrays, in the order of the files and in pieces of any size, and of the ids."""
    digest = hashlib.sha256()
    for piece in content:
        digest.update(piece)
    for table in (users, catalogue):
        digest.update(str(table.dtype).encode())
        values, offsets = table.arrays()
        if offsets is not None:
            digest.update(bytes_of(np.diff(offsets)))  # lengths distinguish "ab", "c" from "a", "bc"
        digest.update(bytes_of(values))
    return digest.hexdigest()


def _check_facts(facts: dict[str, Any]) -> None:
    """Raise if the content of dataset.json has other types, or another format, than :func:`write_files` writes."""
    for name in ("format_version", "interactions", "users", "items"):
        if type(facts[name]) is not int or not 0 <= facts[name] < MOST_ROWS:
            raise InputError(f"{name} is not a count")
    version = facts["format_version"]
    if version > FORMAT_VERSION:
        raise InputError(f"format {version} is newer than this seqrec's {FORMAT_VERSION}; update seqrec")
    if version < FORMAT_VERSION:
        raise InputError(f"format {version} is from an earlier seqrec; this one reads format {FORMAT_VERSION}")
    if type(facts["has_timestamps"]) is not bool:
        raise InputError("has_timestamps is neither true nor false")
    if not isinstance(facts["fingerprint"], str):
        raise InputError("fingerprint is not text")
    if not isinstance(facts["filters"], dict | None):
        raise InputError("filters is not an object")
    for name in ("item_table", "user_table"):
        if not isinstance(facts.get(name, ""), str):
            raise InputError(f"{name} is not text")
    if not isinstance(facts["checksums"], dict):
        raise InputError("checksums is not an object")
    before = facts["before"]
    if before is not None:
        if not isinstance(before, dict):
            raise InputError("before is not an object")
        check_fields(Statistics, before, complete=True)
