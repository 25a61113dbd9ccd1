"""Recommendations for all users of a run on a Ray cluster: a folder of Parquet parts, one per block of users.

A part has a name that its range of users decides, and is written completely or not at all. So whatever is killed and
started again, each user is in exactly one part: a part that is there is not computed again, and one that is computed
twice is the same both times.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from rich.console import Console
from rich.progress import track

from seqrec.cluster.blocks import answers
from seqrec.cluster.config import ClusterConfig
from seqrec.cluster.engine import connected
from seqrec.cluster.runs import identity, open_run
from seqrec.cluster.storage import Folder, absolute, folder_at
from seqrec.data.formats.write import write_parquet
from seqrec.data.people import known_items, known_people
from seqrec.data.split import histories_of_users
from seqrec.errors import InputError, UnknownIdWarning, one_line, warn
from seqrec.files import explained
from seqrec.predictor import Predictor
from seqrec.ranking.scoring import USERS_AT_ONCE
from seqrec.ranking.tables import recommended_table
from seqrec.ranking.topk import check_k, check_keep_seen
from seqrec.run.lock import Lock

MANIFEST = "_recommendations.json"  # most readers of Parquet folders skip names that begin with _
#: Users per part. A multiple of the users that are ranked together, so that scores are those of one process.
BLOCK = 4 * USERS_AT_ONCE
_PART = re.compile(r"part-\d{6,}\.parquet")
_LEFT_OVER = re.compile(r"\.(_recommendations\.json|part-\d{6,}\.parquet)\.\w+\.partial")
_READERS = 16  # parts whose footers are read at once


class Listed(NamedTuple):
    """Users that were asked for: their ids, and their indices in the dataset, ``int64[M]``; -1 if unknown."""

    ids: Any  # an Arrow array, which the processes of a machine share
    indices: np.ndarray


@dataclass(frozen=True, eq=False)
class Job:
    """What is recommended to whom, as every process of the cluster gets it.

    Args:
        run: run folder or URL.
        identity: identity of the run, see :func:`seqrec.cluster.runs.identity`.
        people: number of people.
        k: number of items per person.
        keep_seen: whether items of the history are recommended again.
        allow: indices of the only items to recommend; None for all.
        deny: indices of items not to recommend; None for none.
        listed: digest of the ids that were asked for; None for all users of the run.
        block: people per part.
    """

    run: str
    identity: str
    people: int
    k: int
    keep_seen: bool
    allow: np.ndarray | None
    deny: np.ndarray | None
    listed: str | None
    block: int

    @property
    def parts(self) -> int:
        """Number of parts."""
        return max(1, -(-self.people // self.block))

    def rows(self, part: int) -> slice:
        """The people of a part."""
        return slice(part * self.block, min((part + 1) * self.block, self.people))

    def manifest(self) -> dict[str, Any]:
        """What the parts depend on, as JSON."""
        items = {name: None if some is None else _digest([np.sort(some).tobytes()]) for name, some in
                 (("allow", self.allow), ("deny", self.deny))}  # fmt: skip
        about = {"run": self.identity, "k": self.k, "keep_seen": self.keep_seen, **items, "listed": self.listed}
        return {"format_version": 1, **about, "users": self.people, "block": self.block, "parts": self.parts}


def recommend_on_cluster(
    run: str | Path,
    out: str | Path,
    config: ClusterConfig,
    *,
    users: Any = None,
    k: int = 10,
    keep_seen: bool | None = None,
    allow: Any = None,
    deny: Any = None,
    strict: bool = False,
    overwrite: bool = False,
    block: int = BLOCK,
    progress: bool = False,
) -> dict[str, Any]:
    """Write the rows of :meth:`Recommender.recommend` as Parquet parts, computed on a Ray cluster.

    The parts in the order of their names have the rows, values and order of the local result, if the processes have as
    many threads. If the same recommendations are already there in part, only the missing parts are computed.

    Args:
        run: run folder that all machines of the cluster share, or its URL. Machines then copy it once.
        out: folder that all machines share, or URL, for the parts and ``_recommendations.json``.
        config: connection, number of processes and their threads.
        users: user ids, as for :meth:`Recommender.recommend`. By default all users of the run.
        k: number of items per user.
        keep_seen: as for :meth:`Recommender.recommend`.
        allow: as for :meth:`Recommender.recommend`.
        deny: as for :meth:`Recommender.recommend`.
        strict: raise an error for an unknown user or item. By default it is a warning.
        overwrite: replace other recommendations in the folder. By default they are an error.
        block: users per part, a multiple of 8192.
        progress: show a progress bar, if this is a terminal.

    Returns:
        The content of ``_recommendations.json``: its key ``complete`` has the number of ``rows``, and of users ``left
        out`` because the filters left no items for them.

    Raises:
        InputError: the run or an argument is bad, the folder holds something else, or it is not complete at the end.
    """
    if block < 1 or block % USERS_AT_ONCE:
        raise InputError(f"block is {block}; give a multiple of {USERS_AT_ONCE}")
    job, listed = _planned(run, users, k, keep_seen, allow, deny, strict, block)
    folder = folder_at(out)
    lock = Lock(Path(folder.path), Path(folder.shown)) if folder.is_local else None
    if lock is not None:
        with explained(Path(folder.shown)):
            Path(folder.path).parent.mkdir(parents=True, exist_ok=True)
        lock.take()
    try:
        missing = _begun(folder, job, overwrite)
        if missing:
            _write_parts(folder, job, listed, missing, config, progress)
        return _finished(folder, job)
    finally:
        if lock is not None:
            lock.release()


def _planned(
    run: str | Path, users: Any, k: int, keep_seen: bool | None, allow: Any, deny: Any, strict: bool, block: int
) -> tuple[Job, Listed | None]:
    """Check the arguments against the run, of which only what is needed for that is read."""
    check_keep_seen(keep_seen)
    opened = open_run(run)
    dataset = opened.dataset
    check_k(k, dataset.num_items)
    allowed, denied = (
        None if ids is None else known_items(dataset, ids, name, strict)
        for ids, name in ((allow, "allow"), (deny, "deny"))
    )
    keep = bool(opened.config.split.keep_seen) if keep_seen is None else keep_seen
    listed, digest, people = None, None, dataset.num_users
    if users is not None:
        histories, asked = known_people(dataset, users, strict)
        listed, people = Listed(asked.to_arrow(), histories.users), len(asked)
        digest = _digest(repr(asked[rows].to_list()).encode() for rows in _slices(len(asked), USERS_AT_ONCE))
    job = Job(absolute(run), identity(opened), people, k, keep, allowed, denied, digest, block)
    return job, listed


def _begun(folder: Folder, job: Job, overwrite: bool) -> list[int]:
    """Write the manifest, unless it is there. Returns the numbers of the parts that are missing."""
    files, wanted = folder.files(), job.manifest()
    found = _manifest(folder) if MANIFEST in files else None
    own = [name for name in files if _PART.fullmatch(name)]
    if found is None and files:
        some = min(files)
        raise InputError(f"{folder.shown}: holds other files ({some}); give a new or empty folder")
    if found is not None and {name: found.get(name) for name in wanted} != wanted:
        differing = next(name for name, value in wanted.items() if found.get(name) != value)
        if not overwrite:
            raise InputError(
                f"{folder.shown}: holds recommendations of another run or with other options ({differing} differs); "
                "--overwrite replaces them"
            )
        for name in own:
            folder.remove(name)
        found, own = None, []
    if found is None:
        _write_manifest(folder, wanted)
    return [number for number in range(job.parts) if _name(number) not in set(own)]


def _write_parts(
    folder: Folder, job: Job, listed: Listed | None, missing: list[int], config: ClusterConfig, progress: bool
) -> None:
    bar = Console(stderr=True)
    with connected(config) as ray:
        done = answers(ray, config, missing, Writing, job, listed, folder)
        hidden = not (progress and bar.is_terminal)
        for _ in track(done, "recommending", len(missing), console=bar, transient=True, disable=hidden):
            pass


def _finished(folder: Folder, job: Job) -> dict[str, Any]:
    """Check that every part is there and has the rows and users that it should have, and complete the manifest."""
    files, wanted = folder.files(), job.manifest()
    names = {_name(number) for number in range(job.parts)}
    if absent := sorted(names - set(files)):
        raise InputError(
            f"{folder.shown}: {absent[0]} is missing; give a folder that all machines of the cluster share, or a URL"
        )
    if others := sorted(name for name in files if _PART.fullmatch(name) and name not in names):
        raise InputError(f"{folder.shown}: {others[0]} is not of these recommendations; remove it")
    with ThreadPoolExecutor(_READERS) as pool:
        found = list(pool.map(lambda number: _part_facts(folder, number, job), range(job.parts)))
    for name in files:
        if folder.is_local and _LEFT_OVER.fullmatch(name):
            folder.remove(name)  # of a process that was killed
    rows, served = (sum(facts[name] for facts in found) for name in ("rows", "served"))
    complete = wanted | {"complete": {"rows": rows, "left_out": job.people - served}}
    if _manifest(folder) != complete:
        _write_manifest(folder, complete)
    if served < job.people:
        left = job.people - served
        warn(
            f"no items are left to recommend to {left:,} of {job.people:,}; keep_seen (--keep-seen) allows more",
            UnknownIdWarning,
        )
    return complete


def _part_facts(folder: Folder, number: int, job: Job) -> dict[str, int]:
    """The facts that a part was written with, after comparing them with its rows and the users that it should have."""
    import pyarrow as pa
    from pyarrow.parquet import read_metadata

    name, rows = _name(number), job.rows(number)
    try:
        with folder.system.open_input_file(f"{folder.path}/{name}") as file:
            about = read_metadata(file)
        facts: dict[str, int] = json.loads((about.metadata or {})[b"seqrec"])
        if (facts["users"], facts["rows"]) != (rows.stop - rows.start, about.num_rows):
            raise ValueError("its number of rows differs")
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise InputError(
            f"{folder.shown}: {name} is damaged ({one_line(error)}); remove it and run the command again"
        ) from error
    return facts


class Writing:
    """Computes and writes parts, in one process of the cluster.

    Args:
        job: what is recommended to whom.
        listed: the users, if not all of the run.
        folder: folder of the parts.
    """

    def __init__(self, job: Job, listed: Listed | None, folder: Folder) -> None:
        self.job, self.listed, self.folder = job, listed, folder

    @cached_property
    def predictor(self) -> Predictor:
        """The predictor, whose weights the processes of a machine share."""
        opened = open_run(self.job.run, self.job.identity)
        return Predictor.load(opened.folder, first_pass=False, mapped=True)

    def __call__(self, number: int) -> dict[str, np.ndarray]:
        """Write the part with a number."""
        facts = {"users": 0, "rows": 0, "served": 0}
        content, texts = io.BytesIO(), {}

        def counted() -> Iterator[pl.DataFrame]:
            for asked, frame in self._frames(number):
                facts["users"] += asked
                facts["rows"] += frame.height
                facts["served"] += int((frame["rank"] == 1).sum())
                texts["seqrec"] = json.dumps(facts)
                yield frame

        write_parquet(counted(), content, texts)
        self.folder.write(_name(number), content.getvalue())
        return {"number": np.array([number])}

    def _frames(self, number: int) -> Iterator[tuple[int, pl.DataFrame]]:
        """The number of people of each frame of a part, and the frame."""
        import torch

        job, predictor = self.job, self.predictor
        dataset, rows = predictor.dataset, job.rows(number)
        if self.listed is None:
            indices = np.arange(rows.start, rows.stop)
            asked = dataset.users.take(indices)
        else:
            indices = self.listed.indices[rows]
            asked = pl.Series("user_id", pl.from_arrow(self.listed.ids[rows.start : rows.stop]))
        people = histories_of_users(dataset, indices)
        ways: dict[str, Any] = {"keep_seen": job.keep_seen, "allow": job.allow, "deny": job.deny}
        with torch.inference_mode():
            for found in predictor.rank(people, job.k, size=USERS_AT_ONCE, **ways):
                some, asked = asked[: len(found[0])], asked[len(found[0]) :]
                yield len(some), recommended_table(dataset, some, *found)


def _name(part: int) -> str:
    return f"part-{part:06d}.parquet"


def _manifest(folder: Folder) -> dict[str, Any]:
    try:
        found = json.loads(folder.read(MANIFEST))
        if not isinstance(found, dict):
            raise ValueError("it is not an object")
    except ValueError as error:
        raise InputError(f"{folder.shown}: {MANIFEST} is damaged ({one_line(error)}); give a new folder") from error
    return found


def _write_manifest(folder: Folder, content: dict[str, Any]) -> None:
    folder.write(MANIFEST, (json.dumps(content, indent=2) + "\n").encode())


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:32]
