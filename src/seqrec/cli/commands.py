"""The commands, one function each."""

from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console

from seqrec.cli.console import like, output, write_json, write_table
from seqrec.data.dataset import Dataset
from seqrec.data.fetch import fetch
from seqrec.data.formats.ids import read_ids
from seqrec.data.formats.read import read_log_with_summary
from seqrec.data.formats.summary import LogSummary
from seqrec.data.prepare import PrepareConfig, prepare
from seqrec.data.split import SplitConfig
from seqrec.errors import InputError
from seqrec.files import make_folder
from seqrec.models import MODELS
from seqrec.recommender import Recommender
from seqrec.report.tables import moment, statistics_table, summary_lines, table
from seqrec.run.folder import check_free
from seqrec.run.outputs import check_log, check_outputs
from seqrec.tools.bench import BenchConfig, bench, tables, write
from seqrec.tools.compare import CompareConfig, compare
from seqrec.training.config import TrainConfig


def _no_flag(kind: Any, value: Any) -> None:
    """A file name; cyclopts lets a lone - through only with anything else that begins so."""
    del kind
    if value is not None and value.startswith("-") and value != "-":
        raise ValueError("give a file, or - for standard output")


Json = Annotated[
    str | None,
    Parameter(
        help="Also write the result as JSON to this file; - for standard output.",
        allow_leading_hyphen=True,
        validator=_no_flag,
    ),
]
Flat = Parameter(name="*")
Format = Literal["table", "csv", "jsonl", "parquet"] | None


@dataclass(frozen=True)
class ReadConfig:
    """How the log is read; found by itself without these.

    Args:
        user: name of the user column, or its number (from 1) in a file without a header.
        item: the same for the item column.
        timestamp: the same for the time column.
        rating: the same for the rating column.
        format: format of the file, where its name and content mislead.
    """

    user: str | None = None
    item: str | None = None
    timestamp: str | None = None
    rating: str | None = None
    format: str | None = None


def inspect(
    log: Path,
    *,
    items: Path | None = None,
    read: Annotated[ReadConfig | None, Flat] = None,
    filters: Annotated[PrepareConfig | None, Flat] = None,
    json: Json = None,
) -> None:
    """Statistics of a log, before and after the filters.

    Args:
        log: the log file, or a folder of Parquet parts.
        items: a file that describes the items: titles, categories and so on.
        read: the columns.
        filters: what is kept.
    """
    check_outputs(json, reads=[log, items])
    dataset, summary = _prepared(log, read, filters, items)
    console = output(json)
    _show_log(console, dataset, summary)
    before = asdict(dataset.before) if dataset.before else None
    facts = {"columns": summary.frame_columns, "log": _log_facts(dataset, summary)}
    write_json(json, facts | {"before": before, "after": asdict(dataset.statistics)})


def _prepared(
    log: Path, read: ReadConfig | None, filters: PrepareConfig | None, items: Path | None = None
) -> tuple[Dataset, LogSummary]:
    """The log as read and filtered, with what describes its items, and what was understood of it."""
    needs_rating = filters is not None and filters.min_rating is not None
    frame, summary = read_log_with_summary(log, **asdict(read or ReadConfig()), needs_rating=needs_rating)
    frames = [frame]
    del frame
    dataset = prepare(frames.pop(), filters)  # no name keeps the frame
    if dataset.item_table is not None and dataset.item_table.summary is not None:
        summary.use(dataset.item_table.summary.columns)
    return dataset if items is None else dataset.with_items(items), summary


def _show_log(console: Console, dataset: Dataset, summary: LogSummary) -> None:
    """What was understood of the log and of its items, and its size and shape."""
    lines = summary_lines(summary)
    described = dataset.item_table.summary if dataset.item_table is not None else None
    if described is not None and described.described is not None:
        lines += described.lines()
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
    console.print(statistics_table(dataset))


def _log_facts(dataset: Dataset, summary: LogSummary) -> dict[str, Any]:
    """What was understood of the log and of its items, for JSON."""
    before = dataset.before or dataset.statistics
    times = {name: getattr(before, name) for name in ("first_time", "last_time")}
    facts = asdict(summary) | {name: None if time is None else moment(time) for name, time in times.items()}
    described = dataset.item_table.summary if dataset.item_table is not None else None
    return facts if described is None or described.described is None else facts | {"items": asdict(described)}


def fetch_command(name: str, *, out: Path | None = None, json: Json = None) -> None:
    """Download a public data set by name, once.

    Args:
        name: ml-100k, ml-1m, amazon-beauty and so on; an unknown name lists all.
        out: folder to put it into; the cache without it.
    """
    path = fetch(name, out)
    check_outputs(json, reads=[path])
    console = output(json)
    console.print(str(path), highlight=False, soft_wrap=True)
    write_json(json, {"name": name, "path": str(path)})


def fit_command(model: str) -> Any:
    """The command ``fit`` with the flags of one model."""
    config = MODELS[model].Config

    def fit(
        log: Path,
        *,
        out: Path,
        items: Path | None = None,
        model: Literal[tuple(MODELS)] = "sasrec",  # type: ignore[valid-type]
        resume: bool = False,
        overwrite: bool = False,
        sizes: Annotated[config | None, Flat] = None,  # type: ignore[valid-type]
        training: Annotated[TrainConfig | None, Flat] = None,
        split: Annotated[SplitConfig | None, Flat] = None,
        read: Annotated[ReadConfig | None, Flat] = None,
        filters: Annotated[PrepareConfig | None, Flat] = None,
        json: Json = None,
    ) -> int:
        """Train a model on a log and write a run folder.

        Args:
            log: the log file, or a folder of Parquet parts.
            out: the run folder; must be new or empty without resume or overwrite.
            items: a file that describes the items. Its titles appear beside ids; slirec learns its categories.
            model: what to train; --help shows the flags of the model named before it.
            resume: go on with the run in the folder, exactly where its last checkpoint left off.
            overwrite: replace the run in the folder.
            sizes: of the model.
            training: of the training.
            split: what trains, validates and tests.
            read: the columns.
            filters: what is kept.
        """
        check_outputs(json, reads=[log, items], run=out)
        check_log(log, out)
        if not resume:
            check_free(out, overwrite)  # before the log is read, which may take a while
        dataset, summary = _prepared(log, read, filters, items)
        options = vars(training or TrainConfig()) | vars(split or SplitConfig()) | vars(filters or PrepareConfig())
        recommender = Recommender(model, **vars(sizes or config()) | options)
        console = output(json)
        _show_log(console, dataset, summary)
        recommender.fit(dataset, out, resume=resume, overwrite=overwrite, progress=json != "-")
        if recommender.interrupted:
            before = ", the run before it is removed" if overwrite else ""
            console.print(f"stopped; {out} holds what was learnt so far, --resume goes on{before}", soft_wrap=True)
        else:
            console.print(recommender.summary, highlight=False)
            for evaluation in recommender.evaluations.values():
                console.print(table(evaluation, model))
            console.print(f"run written to {out}", soft_wrap=True)
        facts = {"run": str(out), "interrupted": recommender.interrupted, "log": _log_facts(dataset, summary)}
        write_json(json, facts | recommender.metrics)
        return 130 if recommender.interrupted else 0

    return fit


def evaluate_command(
    run: Path,
    *,
    protocol: Literal["full", "sampled"] = "full",
    negatives: int = 100,
    split: Literal["test", "valid"] = "test",
    keep_seen: bool | None = None,
    seed: int = 0,
    json: Json = None,
) -> None:
    """Rank the held-out item of every user, beside the baselines.

    Args:
        run: the run folder.
        protocol: full: against the whole catalogue; sampled: against random items never interacted with.
        negatives: how many, for sampled.
        split: which held-out items.
        keep_seen: let items of the history take places in a full ranking; --keep-seen=false removes them. By default
            as the run was validated.
        seed: of the negatives, and of the bootstrap of the coverage.
    """
    check_outputs(json, run=run)
    recommender = Recommender.load(run)
    evaluation = recommender.evaluate(protocol, split, negatives=negatives, keep_seen=keep_seen, seed=seed)
    console = output(json)
    console.print(table(evaluation, recommender.model_name))
    write_json(json, evaluation.to_dict())


def recommend_command(
    run: Path,
    *,
    users: list[str] | None = None,
    users_file: Path | None = None,
    history: list[str] | None = None,
    times: list[str] | None = None,
    k: Annotated[int, Parameter(name=["-k", "--k"])] = 10,
    keep_seen: bool | None = None,
    allow: Path | None = None,
    deny: Path | None = None,
    strict: bool = False,
    format: Format = None,
    out: Path | None = None,
    json: Json = None,
) -> None:
    """The best items for users of the log (all without --users), or for a history.

    Args:
        run: the run folder.
        users: ids of users.
        users_file: a file with one user id per line, or CSV, JSON lines or Parquet with a column user_id.
        history: items of one person, the latest last; needs no user.
        times: when each item of --history was met: numbers since 1970 or ISO dates. They order the history, and
            tisasrec and slirec learn from them.
        k: items per user.
        keep_seen: recommend again what is in the history, or what the filters of fit dropped from it;
            --keep-seen=false does not. By default as the run was validated.
        allow: only these items: a file with one id per line, or CSV, JSON lines or Parquet with a column item_id.
        deny: never these items: a file as for allow.
        strict: an unknown user or item is an error instead of a warning.
        format: of the output; without it what the ending of --out says, or a table.
        out: file to write to; standard output without it.
    """
    if sum(given is not None for given in (users, users_file, history)) > 1:
        raise InputError("give one of --users, --users-file and --history")
    if users == [] or history == []:
        raise InputError("no id given; write one or more after --users or --history")
    if times is not None and history is None:
        raise InputError("--times are of the items of --history; give both")
    check_outputs(out, json, reads=[users_file, allow, deny], run=run)
    recommender = Recommender.load(run)
    asked = read_ids(users_file, "user_id") if users_file else users
    frames = recommender.recommend_batches(
        users=None if asked is None else like(asked, recommender.dataset.users.dtype),
        histories=None if history is None else [history],
        times=None if times is None else [times],
        k=k,
        keep_seen=keep_seen,
        allow=None if allow is None else read_ids(allow, "item_id"),
        deny=None if deny is None else read_ids(deny, "item_id"),
        strict=strict,
        progress=out is not None,
    )
    with closing(frames):
        write_table(frames, format, out, json, "recommendations")


def similar_command(
    run: Path,
    *items: Annotated[str, Parameter(allow_leading_hyphen=True)],
    k: Annotated[int, Parameter(name=["-k", "--k"])] = 10,
    format: Format = None,
    out: Path | None = None,
    json: Json = None,
) -> None:
    """The items nearest to an item.

    Args:
        run: the run folder.
        items: ids of items.
        k: neighbours an item.
        format: of the output; without it what the ending of --out says, or a table.
        out: file to write to; standard output without it.
    """
    if not items:
        raise InputError("no item given; write its id after the run folder")
    check_outputs(out, json, run=run)
    frame = Recommender.load(run).similar(items, k, strict=True)
    write_table([frame], format, out, json, "similar items")


def compare_command(
    log: Path,
    *,
    models: list[str],
    items: Path | None = None,
    out: Path | None = None,
    terms: Annotated[CompareConfig | None, Flat] = None,
    training: Annotated[TrainConfig | None, Flat] = None,
    split: Annotated[SplitConfig | None, Flat] = None,
    read: Annotated[ReadConfig | None, Flat] = None,
    filters: Annotated[PrepareConfig | None, Flat] = None,
    json: Json = None,
) -> int:
    """Train several models under one budget, rank the same candidates with all, and tell chance from better.

    Args:
        log: the log file, or a folder of Parquet parts.
        models: names, between commas or blanks; the others are tested against the first.
        items: a file that describes the items, whose categories slirec learns.
        out: folder for compare.csv, compare.json and compare.png, replaced if they are there.
        terms: beside the training, the same for all.
        training: the same for all.
        split: what trains, validates and tests.
        read: the columns.
        filters: what is kept.
    """
    written = [out / f"compare.{ending}" for ending in ("csv", "json", "png")] if out is not None else []
    check_outputs(*written, json, reads=[log, items])
    names = [name.strip() for given in models for name in given.split(",") if name.strip()]
    options = vars(training or TrainConfig()) | vars(split or SplitConfig()) | vars(filters or PrepareConfig())
    dataset, summary = _prepared(log, read, filters, items)
    console = output(json)
    _show_log(console, dataset, summary)
    found = compare(dataset, names, terms, out=out, progress=json != "-", console=console, **options)
    console.print(found.table())
    write_json(json, found.to_dict())
    return 130 if found.interrupted else 0


def demo_command(*, out: Path = Path("runs/demo"), overwrite: bool = False, json: Json = None) -> None:
    """Train SASRec on the embedded data, beside the best score that anybody could reach.

    Args:
        out: the run folder.
        overwrite: replace the run in it.
    """
    check_outputs(json, run=out)
    console = output(json)
    from seqrec.tools.demo import run_demo  # brings matplotlib, which no other command needs

    result = run_demo(out, console, overwrite=overwrite, progress=json != "-")
    write_json(json, result)


def bench_command(
    log: Path | None = None, *, out: Path | None = None, sizes: Annotated[BenchConfig | None, Flat] = None,
    json: Json = None,
) -> None:  # fmt: skip
    """Measure how fast this machine trains, ranks and recommends, and how that grows; some minutes.

    Args:
        log: a log for the main figures; a generated one without it.
        out: folder for bench.json and bench.png.
        sizes: what is measured.
    """
    written = [out / f"bench.{ending}" for ending in ("json", "png")] if out is not None else []
    check_outputs(*written, json, reads=[log])
    if out is not None:
        make_folder(out)  # before minutes of measuring rather than after them
    console = output(json)
    found = bench(log, sizes, console)
    console.print(*tables(found), sep="\n")
    if out is not None:
        write(found, out)
    write_json(json, found)
