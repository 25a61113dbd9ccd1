"""The commands that open a run folder. They import torch when they run, not for their help."""

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter

from seqrec.cli.console import like, output, write_json, write_table
from seqrec.cli.flags import INPUT, OUTPUT, Format, Json, Out, with_flags
from seqrec.errors import InputError
from seqrec.run.outputs import check_outputs

if TYPE_CHECKING:
    from seqrec.recommender import Recommender

_CHOICE = Group("Recommendation", sort_key=2)
_K = Annotated[int, Parameter(name=["-k", "--k"], group=_CHOICE)]


@with_flags
def evaluate_command(
    run: Path,
    *,
    protocol: Literal["full", "sampled"] = "full",
    split: Literal["test", "valid"] = "test",
    negatives: int = 100,
    keep_seen: bool | None = None,
    seed: int = 0,
    json: Json = None,
) -> None:
    """Rank the held-out items.

    Args:
        run: Run folder.
        protocol: Items to rank the held-out item against. full: the whole catalogue; sampled: random items that the
            user has not seen.
        split: Held-out items to rank: those for the test or for validation.
        negatives: Number of random items per user in the sampled protocol.
        keep_seen: Keep items of the history in a full ranking; --keep-seen=false removes them. By default as in the
            run's validation.
        seed: Random seed of the sampled items, and of the bootstrap for the interval of coverage.
    """
    check_outputs(json, run=run)
    recommender = _loaded(run)
    evaluation = recommender.evaluate(protocol, split, negatives=negatives, keep_seen=keep_seen, seed=seed)
    console = output(json)
    from seqrec.report.tables import groups_table, table

    for shown in (table, groups_table):
        console.print(shown(evaluation, recommender.label))
    write_json(json, evaluation.to_dict())


@with_flags
def recommend_command(
    run: Annotated[Path, Parameter(group=INPUT)],
    *,
    users: Annotated[list[str] | None, Parameter(group=INPUT)] = None,
    users_file: Annotated[Path | None, Parameter(group=INPUT)] = None,
    history: Annotated[list[str] | None, Parameter(group=INPUT)] = None,
    times: Annotated[list[str] | None, Parameter(group=INPUT)] = None,
    k: _K = 10,
    keep_seen: Annotated[bool | None, Parameter(group=_CHOICE)] = None,
    allow: Annotated[Path | None, Parameter(group=_CHOICE)] = None,
    deny: Annotated[Path | None, Parameter(group=_CHOICE)] = None,
    strict: Annotated[bool, Parameter(group=_CHOICE, show_default=False)] = False,
    out: Out = None,
    format: Format = None,
    json: Json = None,
) -> None:
    """Recommend items.

    Args:
        run: Run folder.
        users: User ids. By default all users of the log.
        users_file: File of user ids: one per line, or CSV, JSON lines or Parquet with a column user_id.
        history: Item ids of one user, most recent last. The user need not be in the log.
        times: Time of each item of --history: seconds or milliseconds since 1970, or ISO dates. The history is sorted
            by time, and tisasrec and slirec also read the times.
        k: Number of items per user.
        keep_seen: Also recommend items that the user has already seen, including those that the filters of fit dropped;
            --keep-seen=false leaves them out. By default as in the run's validation.
        allow: File of the only items to recommend: one id per line, or CSV, JSON lines or Parquet with a column
            item_id.
        deny: File of items never to recommend, as for --allow.
        strict: Make an unknown user or item an error instead of a warning.
        out: File to write to. By default standard output.
    """
    if sum(given is not None for given in (users, users_file, history)) > 1:
        raise InputError("give one of --users, --users-file and --history")
    if users == [] or history == []:
        raise InputError("no id given; write one or more after --users or --history")
    if times is not None and history is None:
        raise InputError("--times belong to the items of --history; give both")
    check_outputs(out, json, reads=[users_file, allow, deny], run=run)
    from seqrec.data.formats.ids import read_ids

    recommender = _loaded(run)
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


@with_flags
def similar_command(
    run: Annotated[Path, Parameter(group=INPUT)],
    *items: Annotated[str, Parameter(allow_leading_hyphen=True, group=INPUT)],
    k: _K = 10,
    out: Out = None,
    format: Format = None,
    json: Json = None,
) -> None:
    """Find similar items.

    Args:
        run: Run folder.
        items: Item ids.
        k: Number of similar items per item.
        out: File to write to. By default standard output.
    """
    if not items:
        raise InputError("no item given; write its id after the run folder")
    check_outputs(out, json, run=run)
    frame = _loaded(run).similar(items, k, strict=True)
    write_table([frame], format, out, json, "similar items")


@with_flags
def report_command(
    *runs: Annotated[Path, Parameter(group=INPUT)],
    out: Annotated[Path, Parameter(group=OUTPUT)],
    title: Annotated[str | None, Parameter(group=OUTPUT)] = None,
    json: Json = None,
) -> None:
    """Write a report.

    Args:
        runs: Run folders. Several are shown side by side.
        out: HTML file to write. It needs no other file. Each picture is also written as a PNG beside it, into the
            folder NAME-pictures.
        title: Heading of the page. By default the names of the runs.
    """
    if not runs:
        raise InputError("no run given; write one run folder or more before --out")
    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{out}: is not the name of a page; give one that ends in .html")
    for run in runs:
        check_outputs(out, json, run=run)
    console = output(json)
    from seqrec.report.page import pictures_folder, write_report

    files = write_report(runs, out, title)
    pictures = f"; its {len(files) - 1} pictures are in {pictures_folder(out)}" if len(files) > 1 else ""
    console.print(f"report written to {out}{pictures}", highlight=False, soft_wrap=True)
    write_json(json, {"page": str(out), "pictures": [str(file) for file in files[1:]]})


def _loaded(run: Path) -> "Recommender":
    """Open a run. This imports torch."""
    from seqrec.recommender import Recommender

    return Recommender.load(run)
