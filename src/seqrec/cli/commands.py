"""The commands that take a log, except ``fit``. Importing them or showing their help does not need torch."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from seqrec.cli.console import output, write_json
from seqrec.cli.flags import INPUT, OUTPUT, Items, Json, Out, Track, Users, with_flags
from seqrec.cluster.config import ClusterConfig
from seqrec.data.dataset import Dataset
from seqrec.data.fetch import fetch
from seqrec.data.fields import Options
from seqrec.data.formats.item_columns import ItemSummary
from seqrec.data.formats.read import read_log_with_summary
from seqrec.data.formats.summary import LogSummary
from seqrec.data.prepare import PrepareConfig, prepare, with_tables
from seqrec.data.split import SplitConfig
from seqrec.errors import InputError, LogWarning, warn
from seqrec.report.tables import moment, statistics_table, summary_lines
from seqrec.run.outputs import check_outputs
from seqrec.tools.config import CompareConfig
from seqrec.training.config import TrainConfig


@dataclass(frozen=True)
class ReadConfig(Options):
    """How the log is read. Options that are not given are detected from the file.

    Args:
        user: Name of the user column, or its number (from 1) if the file has no header. By default detected, as for the
            other columns.
        item: Name or number of the item column.
        timestamp: Name or number of the time column.
        rating: Name or number of the rating column.
        format: File format. By default detected from the file's name and content.
    """

    user: str | None = None
    item: str | None = None
    timestamp: str | None = None
    rating: str | None = None
    format: str | None = None


@with_flags
def inspect(
    log: Annotated[str, Parameter(group=INPUT)],
    *,
    items: Items = None,
    users: Users = None,
    read: ReadConfig | None = None,
    filters: PrepareConfig | None = None,
    cluster: ClusterConfig | None = None,
    json: Json = None,
) -> None:
    """Describe a log.

    Args:
        log: Log file, or folder of Parquet parts; with --engine ray also its URL (s3://, gs://, hdfs://).
    """
    check_outputs(json, reads=[log, items, users])
    dataset, summary = prepared(log, read, filters, (items, users), cluster)
    console = output(json)
    show_log(console, dataset, summary)
    before = asdict(dataset.before) if dataset.before else None
    facts = {"columns": summary.frame_columns, "log": log_facts(dataset, summary)}
    write_json(json, facts | {"before": before, "after": asdict(dataset.statistics)})


def prepared(
    log: str | Path,
    read: ReadConfig | None,
    filters: PrepareConfig | None,
    tables: tuple[Path | None, Path | None],
    cluster: ClusterConfig | None = None,
    out: Path | None = None,
) -> tuple[Dataset, LogSummary]:
    """Read and filter a log. Returns the dataset with its tables, and a summary of how the log was read.

    ``tables`` are the files that describe the items and the users.

    A cluster writes the dataset to a temporary folder: beside ``out``, or in the storage of the cluster, or where this
    machine has its temporary files.
    """
    if cluster is not None:
        cluster.check()
    if cluster is not None and cluster.engine == "ray":
        from seqrec.cluster.temporary import can_be_blocks, prepare_for_a_while  # imports pyarrow

        if can_be_blocks(log):
            dataset, summary = prepare_for_a_while(log, asdict(read or ReadConfig()), filters, cluster, out)
            return with_tables(dataset, *tables), summary
        warn(f"{log}: is not Parquet, so it is read by this process instead of the cluster", LogWarning)
    elif re.match(r"[a-z][a-z0-9+.-]+://", str(log), re.IGNORECASE):
        raise InputError(f"{log}: is a URL, which only a cluster reads; give --engine ray, or download it")
    needs_rating = filters is not None and filters.min_rating is not None
    frame, summary = read_log_with_summary(log, **asdict(read or ReadConfig()), needs_rating=needs_rating)
    frames = [frame]
    del frame
    dataset = prepare(frames.pop(), filters)  # keeps no reference to the frame, so that its memory can be freed
    if dataset.item_table is not None and dataset.item_table.summary is not None:
        summary.use(dataset.item_table.summary.columns)
    return with_tables(dataset, *tables), summary


def show_log(console: Console, dataset: Dataset, summary: LogSummary) -> None:
    """Print how the log and its tables were read, and the statistics of the log."""
    lines = summary_lines(summary)
    for described in _described(dataset).values():
        lines += described.lines()
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
    console.print(statistics_table(dataset))


def log_facts(dataset: Dataset, summary: LogSummary) -> dict[str, Any]:
    """How the log and its tables were read, for JSON."""
    before = dataset.before or dataset.statistics
    times = {name: getattr(before, name) for name in ("first_time", "last_time")}
    facts = asdict(summary) | {name: None if time is None else moment(time) for name, time in times.items()}
    return facts | {name: asdict(described) for name, described in _described(dataset).items()}


def _described(dataset: Dataset) -> dict[str, ItemSummary]:
    """How files of items and users were understood, if there were any: ``items`` and ``users``."""
    tables = {"items": dataset.item_table, "users": dataset.user_table}
    found = {name: table.summary for name, table in tables.items() if table is not None}
    return {name: one for name, one in found.items() if one is not None and one.described is not None}


def given_options(*parts: Options | None) -> dict[str, Any]:
    """The options that were given, by name."""
    return {name: getattr(part, name) for part in parts if part is not None for name in part.given}


def merged(training: TrainConfig | None, split: SplitConfig | None, filters: PrepareConfig | None) -> dict[str, Any]:
    """The options of training, split and filters by name, with defaults for those not given."""
    return vars(training or TrainConfig()) | vars(split or SplitConfig()) | vars(filters or PrepareConfig())


@with_flags
def fetch_command(name: str, *, out: Path | None = None, json: Json = None) -> None:
    """Download a public data set.

    Args:
        name: Name of the data set, such as ml-100k or amazon-beauty. An unknown name lists them all.
        out: Folder to download to. By default the cache.
    """
    path = fetch(name, out)
    check_outputs(json, reads=[path])
    console = output(json)
    console.print(str(path), highlight=False, soft_wrap=True)
    write_json(json, {"name": name, "path": str(path)})


@with_flags
def compare_command(
    log: Annotated[Path, Parameter(group=INPUT)],
    *,
    models: Annotated[list[str], Parameter(group=INPUT)],
    items: Items = None,
    users: Users = None,
    terms: CompareConfig | None = None,
    training: TrainConfig | None = None,
    split: SplitConfig | None = None,
    read: ReadConfig | None = None,
    filters: PrepareConfig | None = None,
    out: Out = None,
    track: Track = None,
    overwrite: Annotated[bool, Parameter(group=OUTPUT, show_default=False)] = False,
    json: Json = None,
) -> int:
    """Train several models under one budget.

    Args:
        log: Log file, or folder of Parquet parts.
        models: Names of the models, separated by commas or spaces. The others are tested against the first.
        out: Folder for compare.csv, compare.json and compare.png. What is trained is kept there too: the same command
            goes on after a crash, also with more --seeds or --models.
        track: Also record each training, as fit --track does, below one record of the comparison.
        overwrite: Begin anew if the folder holds a comparison.
    """
    written = [out / f"compare.{ending}" for ending in ("csv", "json", "png")] if out is not None else []
    check_outputs(*written, json, reads=[log, items, users])
    if overwrite and out is None:
        raise InputError("overwrite needs a folder; give --out")
    if track is not None:
        from seqrec.training.tracking import check_tracker  # before the log is read

        check_tracker(track)
    names = [name.strip() for given in models for name in given.split(",") if name.strip()]
    dataset, summary = prepared(log, read, filters, (items, users))
    console = output(json)
    show_log(console, dataset, summary)
    from seqrec.tools.compare import compare_models  # imports torch

    options = merged(training, split, filters)
    ways: dict[str, Any] = {"out": out, "overwrite": overwrite, "track": track, "progress": json != "-"}
    found = compare_models(dataset, names, terms, console=console, **ways, **options)
    for shown in found.tables():
        console.print(shown, new_line_start=True)
    write_json(json, found.to_dict())
    return 130 if found.interrupted else 0
