"""The one form of a Dataset on disk: a folder of .npy files, which are mapped, and dataset.json, which describes them.

``Dataset.save`` writes it, and so does training, to the folder ``data`` of a run. Opening reads dataset.json and the
headers of the arrays. Everything else is read, and compared with its checksum, when it is asked for.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from seqrec.data.checked import check_files, read_json, size_of
from seqrec.data.fields import check_fields
from seqrec.data.id_table import IdTable
from seqrec.data.items import ITEM_TABLE, ItemTable, load_items, save_items
from seqrec.data.mapped import Mapped, bytes_of, write_array
from seqrec.data.statistics import Statistics
from seqrec.errors import InputError, one_line

FORMAT_VERSION = 2
FACTS = "dataset.json"
_ARRAYS = {"items": np.int32, "timestamps": np.int64, "offsets": np.int64}
_MET = {"met_items": np.int32, "met_offsets": np.int64}  # only where there are any
#: Integers, sorted; or the bytes of texts, and where each text begins.
_IDS = {"user_ids": "user_id_offsets", "item_ids": "item_id_offsets"}
#: Names of all files that a saved dataset may have.
FILES = frozenset({FACTS, ITEM_TABLE, *(f"{name}.npy" for name in (*_ARRAYS, *_MET, *_IDS, *_IDS.values()))})
FORMER_FILES = frozenset({"users.parquet", "items.parquet"})  # of format 1
MOST_ROWS = 2**62


class Saved:
    """The files of a saved dataset.

    Args:
        folder: where they are.
        advice: what to do about a damaged file.

    Attributes:
        facts: what dataset.json holds.
        arrays: the files by name, mapped.
        users: the table of user ids.
        catalogue: the table of item ids.
        checked: whether everything in them was checked.

    Raises:
        InputError: a file is missing, a link, of another length or type than dataset.json says, or of a newer format.
    """

    def __init__(self, folder: Path, advice: str) -> None:
        self.folder, self.advice, self.checked = folder, advice, False
        if not folder.is_dir():
            raise InputError(f"{folder}: is missing or no folder; {advice}")
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

        self.item_table = self._item_table() if "item_table" in self.facts else None

    def _item_table(self) -> ItemTable:
        """The item table, of which nothing is read before its first use."""
        path, digest = self.folder / ITEM_TABLE, self.facts["item_table"]
        size_of(path, self.advice)
        return ItemTable(lambda: load_items(path, self.catalogue.series, digest, self.advice).frame)

    def _has(self, name: str) -> bool:
        return name in self.facts["checksums"]

    def _open(self, name: str, dtype: Any, rows: int | None) -> Mapped:
        return Mapped(self.folder / f"{name}.npy", self.facts["checksums"].get(name), dtype, rows, self.advice)

    def fields(self) -> dict[str, Any]:
        """What :class:`seqrec.Dataset` takes."""
        before = self.facts["before"]
        return {
            **{name: self.arrays[name].array for name in (*_ARRAYS, *_MET) if name in self.arrays},
            "users": self.users,
            "catalogue": self.catalogue,
            "has_timestamps": self.facts["has_timestamps"],
            "before": None if before is None else Statistics(**before),
            "filters": self.facts["filters"],
            "item_table": self.item_table,
            "saved": self,
        }

    def holds(self, fields: Mapping[str, Any]) -> bool:
        """Whether the arrays among the fields of a dataset are those in the files."""
        names = [name for name in (*_ARRAYS, *_MET) if name in self.arrays]
        return all(fields[name] is self.arrays[name].array for name in names)

    def damaged(self, why: str) -> InputError:
        """The one line for files that are not what was saved together."""
        return InputError(f"{self.folder}: is damaged ({why}); {self.advice}")


def write_files(folder: Path, fields: Mapping[str, Any], fingerprint: str) -> None:
    """Write the files of a dataset, given by its fields, to a folder that is there and empty."""
    arrays = {name: fields[name] for name in (*_ARRAYS, *_MET) if fields[name] is not None}
    for field, name in (("users", "user_ids"), ("catalogue", "item_ids")):
        arrays[name], offsets = fields[field].arrays()
        if offsets is not None:
            arrays[_IDS[name]] = offsets
    checksums = {name: write_array(folder / f"{name}.npy", array) for name, array in arrays.items()}
    facts = {
        "format_version": FORMAT_VERSION,
        "has_timestamps": fields["has_timestamps"],
        "interactions": len(arrays["items"]),
        "users": len(fields["users"]),
        "items": len(fields["catalogue"]),
        "fingerprint": fingerprint,
        "before": vars(fields["before"]) if fields["before"] else None,
        "filters": fields["filters"],
        "checksums": checksums,  # of the blocks of each array, eight hexadecimal digits per block
    }
    if fields["item_table"] is not None:
        facts["item_table"] = save_items(fields["item_table"], folder / ITEM_TABLE)
    (folder / FACTS).write_text(json.dumps(facts, indent=2), encoding="utf-8")


def fingerprint_of(fields: Mapping[str, Any]) -> str:
    """A digest of the interactions and ids of a dataset, given by its fields; costs one pass over all of them."""
    digest = hashlib.sha256()
    for name in _ARRAYS:
        digest.update(bytes_of(fields[name]))
    for field in ("users", "catalogue"):
        table: IdTable = fields[field]
        digest.update(str(table.dtype).encode())
        values, offsets = table.arrays()
        if offsets is not None:
            digest.update(bytes_of(np.diff(offsets)))  # the lengths tell "ab", "c" from "a", "bc"
        digest.update(bytes_of(values))
    return digest.hexdigest()


def _check_facts(facts: dict[str, Any]) -> None:
    """Refuse facts of another type or format than :func:`write_files` writes."""
    for name in ("format_version", "interactions", "users", "items"):
        if type(facts[name]) is not int or not 0 <= facts[name] < MOST_ROWS:
            raise InputError(f"{name} is no count")
    version = facts["format_version"]
    if version > FORMAT_VERSION:
        raise InputError(f"format {version} is newer than this seqrec's {FORMAT_VERSION}; update seqrec")
    if version < FORMAT_VERSION:
        raise InputError(f"format {version} is of an earlier seqrec, and this one reads format {FORMAT_VERSION}")
    if type(facts["has_timestamps"]) is not bool:
        raise InputError("has_timestamps is neither true nor false")
    if not isinstance(facts["fingerprint"], str):
        raise InputError("fingerprint is no text")
    if not isinstance(facts["filters"], dict | None):
        raise InputError("filters is no object")
    if not isinstance(facts.get("item_table", ""), str):
        raise InputError("item_table is no text")
    if not isinstance(facts["checksums"], dict):
        raise InputError("checksums is no object")
    before = facts["before"]
    if before is not None:
        if not isinstance(before, dict):
            raise InputError("before is no object")
        check_fields(Statistics, before, complete=True)
