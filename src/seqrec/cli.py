"""The command line: parses, then calls one function a command."""

import errno
import io
import json
import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import polars as pl
from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.table import Table

import seqrec
from seqrec.bench import BenchConfig, bench, tables, write
from seqrec.compare import CompareConfig, compare
from seqrec.data.fetch import fetch
from seqrec.data.prepare import PrepareConfig, prepare, statistics_table
from seqrec.data.read import read_log
from seqrec.errors import InputError, one_line
from seqrec.evaluate import table
from seqrec.files import KINDS, explain_os_error, lines_of, make_folder, replacing, text_of, write_frames, write_parquet
from seqrec.models import MODELS
from seqrec.recommender import Recommender, UnknownIdWarning
from seqrec.run import SplitConfig, check_free
from seqrec.threads import threads
from seqrec.train import TrainConfig


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
        user: name of the user column.
        item: name of the item column.
        timestamp: name of the time column.
        rating: name of the rating column.
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
    read: Annotated[ReadConfig | None, Flat] = None,
    filters: Annotated[PrepareConfig | None, Flat] = None,
    json: Json = None,
) -> None:
    """Statistics of a log, before and after the filters.

    Args:
        log: the log file, or a folder of Parquet parts.
        read: the columns.
        filters: what is kept.
    """
    frames = [read_log(log, **asdict(read or ReadConfig()))]
    columns = frames[0].columns
    dataset = prepare(frames.pop(), filters)  # no name keeps the frame
    console = _output(json)
    console.print(f"{log}: columns {', '.join(columns)}", highlight=False)
    console.print(statistics_table(dataset))
    before = asdict(dataset.before) if dataset.before else None
    _write_json(json, {"columns": columns, "before": before, "after": asdict(dataset.statistics)})


def fetch_command(name: str, *, out: Path | None = None, json: Json = None) -> None:
    """Download a public data set by name, once.

    Args:
        name: ml-100k, ml-1m, amazon-beauty and so on; an unknown name lists all.
        out: folder to put it into; the cache without it.
    """
    path = fetch(name, out)
    console = _output(json)
    console.print(str(path), highlight=False, soft_wrap=True)
    _write_json(json, {"name": name, "path": str(path)})


def fit_command(model: str) -> Any:
    """The command ``fit`` with the flags of one model."""
    config = MODELS[model].Config

    def fit(
        log: Path,
        *,
        out: Path,
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
            model: what to train; --help shows the flags of the model named before it.
            resume: go on with the run in the folder, exactly where its last checkpoint left off.
            overwrite: replace the run in the folder.
            sizes: of the model.
            training: of the training.
            split: what trains, validates and tests.
            read: the columns.
            filters: what is kept.
        """
        if not resume:
            check_free(out, overwrite)  # before the log is read, which may take a while
        dataset = prepare(read_log(log, **asdict(read or ReadConfig())), filters)  # no name keeps the frame
        options = vars(training or TrainConfig()) | vars(split or SplitConfig()) | vars(filters or PrepareConfig())
        recommender = Recommender(model, **vars(sizes or config()) | options)
        console = _output(json)
        console.print(statistics_table(dataset))
        recommender.fit(dataset, out, resume=resume, overwrite=overwrite, progress=json != "-")
        if recommender.interrupted:
            console.print(f"stopped; {out} holds what was learnt so far, --resume goes on", soft_wrap=True)
        else:
            console.print(recommender.summary, highlight=False)
            for evaluation in recommender.evaluations.values():
                console.print(table(evaluation, model))
            console.print(f"run written to {out}", soft_wrap=True)
        _write_json(json, {"run": str(out), "interrupted": recommender.interrupted, **recommender.metrics})
        return 130 if recommender.interrupted else 0

    return fit


def evaluate_command(
    run: Path,
    *,
    protocol: Literal["full", "sampled"] = "full",
    negatives: int = 100,
    split: Literal["test", "valid"] = "test",
    keep_seen: bool = False,
    seed: int = 0,
    json: Json = None,
) -> None:
    """Rank the held-out item of every user, beside the baselines.

    Args:
        run: the run folder.
        protocol: full: against the whole catalogue; sampled: against random items never interacted with.
        negatives: how many, for sampled.
        split: which held-out items.
        keep_seen: let items of the history take places in a full ranking.
        seed: of the negatives and of the bootstrap.
    """
    recommender = Recommender.load(run)
    evaluation = recommender.evaluate(protocol, split, negatives=negatives, keep_seen=keep_seen, seed=seed)
    console = _output(json)
    console.print(table(evaluation, recommender.model_name))
    _write_json(json, evaluation.to_dict())


def recommend_command(
    run: Path,
    *,
    users: list[str] | None = None,
    users_file: Path | None = None,
    history: list[str] | None = None,
    k: Annotated[int, Parameter(name=["-k", "--k"])] = 10,
    keep_seen: bool = False,
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
        users_file: a file with a user id a line.
        history: items of one person, the latest last; needs no user.
        k: items a user.
        keep_seen: recommend again what is in the history.
        allow: a file with an item id a line: only these.
        deny: a file with an item id a line: never these.
        strict: an unknown user or item is an error instead of a warning.
        format: of the output; without it what the ending of --out says, or a table.
        out: file to write to; standard output without it.
    """
    if sum(given is not None for given in (users, users_file, history)) > 1:
        raise InputError("give one of --users, --users-file and --history")
    if users == [] or history == []:
        raise InputError("no id given; write one or more after --users or --history")
    recommender = Recommender.load(run)
    asked = lines_of(users_file) if users_file else users
    frames = recommender.recommend_batches(
        users=None if asked is None else _like(asked, recommender.dataset.user_ids),
        histories=None if history is None else [history],
        k=k,
        keep_seen=keep_seen,
        allow=None if allow is None else lines_of(allow),
        deny=None if deny is None else lines_of(deny),
        strict=strict,
        progress=out is not None,
    )
    with closing(frames):
        _write_frames(frames, format, out, json, "recommendations")


def similar_command(
    run: Path,
    *items: str,
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
    frame = Recommender.load(run).similar(items, k, strict=True)
    _write_frames([frame], format, out, json, "similar items")


def compare_command(
    log: Path,
    *,
    models: list[str],
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
        out: folder for compare.csv, compare.json and compare.png, replaced if they are there.
        terms: beside the training, the same for all.
        training: the same for all.
        split: what trains, validates and tests.
        read: the columns.
        filters: what is kept.
    """
    names = [name.strip() for given in models for name in given.split(",") if name.strip()]
    options = vars(training or TrainConfig()) | vars(split or SplitConfig()) | vars(filters or PrepareConfig())
    dataset = prepare(read_log(log, **asdict(read or ReadConfig())), filters)
    console = _output(json)
    found = compare(dataset, names, terms, out=out, progress=json != "-", console=console, **options)
    console.print(found.table())
    _write_json(json, found.to_dict())
    return 130 if found.interrupted else 0


def demo_command(*, out: Path = Path("runs/demo"), overwrite: bool = False, json: Json = None) -> None:
    """Train SASRec on the embedded data, beside the best score that anybody could reach.

    Args:
        out: the run folder.
        overwrite: replace the run in it.
    """
    console = _output(json)
    from seqrec.demo import run_demo  # brings matplotlib, which no other command needs

    result = run_demo(out, console, overwrite=overwrite, progress=json != "-")
    _write_json(json, result)


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
    if out is not None:
        make_folder(out)  # before minutes of measuring rather than after them
    console = _output(json)
    found = bench(log, sizes, console)
    console.print(*tables(found), sep="\n")
    if out is not None:
        write(found, out)
    _write_json(json, found)


def make_app(model: str = "sasrec") -> App:
    """The command line; ``fit`` has the flags of one model."""
    app = App(
        name="seqrec",
        help=seqrec.__doc__ or "",
        version=seqrec.__version__,
        default_parameter=Parameter(negative="", consume_multiple=True),
    )
    for command in (
        inspect, fetch_command, fit_command(model), evaluate_command, recommend_command, similar_command,
        compare_command, demo_command, bench_command,
    ):  # fmt: skip
        app.command(command, name=command.__name__.removesuffix("_command"))
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 went well, 2 is input that a person can correct, 130 a stop by Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    errors = _Console(stderr=True, soft_wrap=True)

    def show(message: Warning | str, *rest: Any, **more: Any) -> None:
        errors.print(f"warning: {message}", style="yellow", markup=False, highlight=False)

    try:
        with warnings.catch_warnings(), threads():
            warnings.simplefilter("always", UnknownIdWarning)
            warnings.showwarning = show
            app = make_app(_model_named(arguments))
            command, bound, _ = app.parse_args(arguments, exit_on_error=False, print_error=False)
            result = command(*bound.args, **bound.kwargs)
        sys.stdout.flush()
    except (InputError, CycloptsError) as error:
        message = one_line(error)
        if isinstance(error, CycloptsError):
            message += ". See seqrec COMMAND --help."
        errors.print(f"error: {message}", style="red", markup=False, highlight=False)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "allocate memory" not in str(error):
            raise
        message = f"there is not enough memory ({one_line(error)}); give smaller sizes or a smaller log"
        errors.print(f"error: {message}", style="red", markup=False, highlight=False)
        return 2
    except KeyboardInterrupt:
        errors.print("stopped", style="yellow")
        return 130
    except BrokenPipeError:
        # The reader (head, less) has gone; Python would complain once more when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        errors.print(f"error: {explain_os_error(error, Path('standard output'))}", style="red", markup=False)
        return 2
    return result if isinstance(result, int) else 0


def _model_named(arguments: Sequence[str]) -> str:
    """The model that ``--model`` names; its flags are those of ``fit``."""
    name = "sasrec"
    for index, argument in enumerate(arguments):
        if argument == "--model" and index + 1 < len(arguments):
            name = arguments[index + 1]
        elif argument.startswith("--model="):
            name = argument.partition("=")[2]
    return name if name in MODELS else "sasrec"


class _Console(Console):
    """Prints ids, names and paths as they are, and leaves a reader that has gone to ``main``.

    Rich would read ``[/b]`` in an id as markup and ``:smile:`` as a picture, and end the process with 1.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def on_broken_pipe(self) -> None:
        """Go on with the error that is being handled."""
        raise BrokenPipeError


def _output(json_to: str | None) -> Console:
    """Where words go: standard output, or standard error where JSON takes that."""
    return _Console(stderr=json_to == "-")


def _write_json(to: str | None, values: Any) -> None:
    if to is None:
        return
    text = json.dumps(values, indent=2, ensure_ascii=False, default=str)
    if to == "-":
        _write_out((text + "\n").encode())
        return
    with replacing(to) as new:
        new.write_text(text + "\n", encoding="utf-8")


def _write_frames(
    frames: Iterable[pl.DataFrame], kind: str | None, out: Path | None, json_to: str | None, title: str
) -> None:
    """Frames of one table, one after another; only JSON needs all of them at once."""
    ending = out.suffix if out else ""
    if kind is None and ending not in (*KINDS, "", ".txt"):  # a table for people holds the first rows alone
        raise InputError(f"{out}: is of no known kind; end its name in {', '.join(KINDS)}, or give --format")
    kind = kind or KINDS.get(ending, "table")
    if kind == "parquet" and out is None and json_to != "-" and sys.stdout.isatty():
        raise InputError("Parquet is not for a terminal; give --out FILE")
    whole = None if json_to is None else pl.concat(list(frames))
    frames = frames if whole is None else [whole]
    if out is not None and kind == "table":
        with replacing(out) as new, new.open("w", encoding="utf-8") as file:
            _Console(file=file, width=100).print(_grid(frames, title))
    elif out is not None:
        write_frames(frames, out, kind)
    elif json_to == "-":
        pass  # JSON takes standard output
    elif kind == "table":
        _Console().print(_grid(frames, title))
    elif kind == "parquet":
        memory = io.BytesIO()
        write_parquet(frames, memory)
        _write_out(memory.getvalue())
    else:
        for part in text_of(frames, kind):  # not polars itself into the stream: it hides that the reader has gone
            _write_out(part)
    if whole is not None:
        _write_json(json_to, whole.to_dicts())


def _write_out(content: bytes) -> None:
    """All of it to standard output, which without a buffer (PYTHONUNBUFFERED) may take a part and say nothing."""
    sys.stdout.flush()
    rest = memoryview(content)
    while rest:
        rest = rest[sys.stdout.buffer.write(rest) or 0 :]
    sys.stdout.buffer.flush()


def _grid(frames: Iterable[pl.DataFrame], title: str, most: int = 200) -> Table:
    height, heads = 0, []
    for frame in frames:
        heads.append(frame.head(max(most - height, 0)))
        height += frame.height
    shown = pl.concat(heads)
    grid = Table(title=title)
    for name in shown.columns:
        grid.add_column(name, justify="right" if shown[name].dtype.is_numeric() else "left", overflow="fold")
    for row in shown.iter_rows():
        grid.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in row))
    if height > most:
        grid.caption = f"the first {most} of {height:,} rows; --format csv gives all"
    return grid


def _like(ids: list[str], known: pl.Series) -> pl.Series:
    """Ids of a command line in the type of the log's, so that results join with it."""
    asked = pl.Series("user_id", ids, dtype=pl.String)
    typed = asked.cast(known.dtype, strict=False)
    return typed if (typed.cast(pl.String) == asked).fill_null(False).all() else asked


if __name__ == "__main__":
    sys.exit(main())
