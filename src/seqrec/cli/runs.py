"""The commands that open a run folder. They import torch when they run, not for their help."""

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from seqrec.cli.console import like, output, write_json, write_table
from seqrec.cli.flags import INPUT, OUTPUT, Format, Json, Out, with_flags
from seqrec.cluster.config import ClusterConfig
from seqrec.cluster.storage import is_url
from seqrec.errors import InputError
from seqrec.run.outputs import check_outputs

if TYPE_CHECKING:
    import polars as pl

    from seqrec.data.dataset import Dataset
    from seqrec.recommender import Recommender

_CHOICE = Group("Recommendation", sort_key=2)
_K = Annotated[int, Parameter(name=["-k", "--k"], group=_CHOICE)]


@with_flags
def evaluate_command(
    run: str,
    *,
    protocol: Literal["full", "sampled"] = "full",
    split: Literal["test", "valid"] = "test",
    negatives: int | None = None,
    keep_seen: bool | None = None,
    seed: int = 0,
    cluster: ClusterConfig | None = None,
    json: Json = None,
) -> None:
    """Rank the held-out items.

    Args:
        run: Run folder. With --engine ray, all machines of the cluster share it, or it is a URL (s3://, gs://, hdfs://).
        protocol: Items to rank the held-out item against. full: the whole catalogue; sampled: random items that the
            user has not seen.
        split: Held-out items to rank: those for the test or for validation.
        negatives: Number of random items per user, for --protocol sampled. [default: 100]
        keep_seen: Keep items of the history in a full ranking; --keep-seen=false removes them. By default as in the
            run's validation.
        seed: Random seed of the sampled items, and of the bootstrap for the interval of coverage.
    """
    on_cluster = _is_for_cluster(run, cluster)
    check_outputs(json, run=None if is_url(run) else run)
    if negatives is not None and protocol == "full":
        raise InputError("negatives is given, but protocol is full, which ranks all items; add --protocol sampled")
    options: dict[str, Any] = {"keep_seen": keep_seen, "seed": seed}
    options |= {} if negatives is None else {"negatives": negatives}
    if cluster is not None and on_cluster:
        from seqrec.cluster.evaluate import evaluate_on_cluster

        evaluation, label = evaluate_on_cluster(run, cluster, protocol, split, **options)
    else:
        recommender = _loaded(run)
        evaluation, label = recommender.evaluate(protocol, split, **options), recommender.label
    console = output(json)
    from seqrec.report.tables import groups_table, table

    for shown in (table, groups_table):
        console.print(shown(evaluation, label))
    write_json(json, evaluation.to_dict())


@with_flags
def recommend_command(
    run: Annotated[str, Parameter(group=INPUT)],
    *,
    users: Annotated[list[str] | None, Parameter(group=INPUT)] = None,
    users_file: Annotated[Path | None, Parameter(group=INPUT)] = None,
    history: Annotated[list[str] | None, Parameter(group=INPUT)] = None,
    times: Annotated[list[str] | None, Parameter(group=INPUT)] = None,
    k: _K = 10,
    keep_seen: Annotated[bool | None, Parameter(group=_CHOICE)] = None,
    allow: Annotated[Path | None, Parameter(group=_CHOICE)] = None,
    deny: Annotated[Path | None, Parameter(group=_CHOICE)] = None,
    new_items: Annotated[Path | None, Parameter(group=INPUT)] = None,
    strict: Annotated[bool, Parameter(group=_CHOICE, show_default=False)] = False,
    cluster: ClusterConfig | None = None,
    out: Annotated[str | None, Parameter(group=OUTPUT)] = None,
    overwrite: Annotated[bool, Parameter(group=OUTPUT, show_default=False)] = False,
    format: Format = None,
    json: Json = None,
) -> None:
    """Recommend items.

    Args:
        run: Run folder. With --engine ray, all machines of the cluster share it, or it is a URL (s3://, gs://, hdfs://).
        users: User ids. By default all users of the log.
        users_file: File of user ids: one per line, or CSV, JSON lines or Parquet with a column user_id.
        history: Item ids of one user, most recent last. The user need not be in the log.
        times: Time of each item of --history: seconds or milliseconds since 1970, or ISO dates. The history is sorted
            by time, and tisasrec, hstu and slirec also read the times.
        k: Number of items per user.
        keep_seen: Also recommend items that the user has already seen, including those that the filters of fit dropped;
            --keep-seen=false leaves them out. By default as in the run's validation.
        allow: File of the only items to recommend: one id per line, or CSV, JSON lines or Parquet with a column
            item_id.
        deny: File of items never to recommend, as for --allow.
        new_items: File that describes items which training never saw; a model that learned features ranks them too.
        strict: Make an unknown user or item an error instead of a warning.
        out: File to write to. By default standard output. With --engine ray, a folder or URL for Parquet parts; the
            same command again computes only what is missing.
        overwrite: Replace other recommendations in the folder; only for --engine ray.
    """
    _check_asked(users, users_file, history, times)
    options: dict[str, Any] = {"k": k, "keep_seen": keep_seen, "strict": strict, "progress": out is not None}
    if _is_for_cluster(run, cluster, history is not None, overwrite):
        files = users, users_file, allow, deny, new_items
        _recommend_on_cluster(run, cluster, out, format, json, files, overwrite, options)
        return
    check_outputs(out, json, reads=[users_file, allow, deny, new_items], run=run)
    recommender = _loaded(run, new_items)
    frames = recommender.recommend_batches(
        users=_asked(users, users_file, recommender.dataset),
        histories=None if history is None else [history],
        times=None if times is None else [times],
        **_items(allow, deny),
        **options,
    )
    with closing(frames):
        write_table(frames, format, None if out is None else Path(out), json, "recommendations")


def _check_asked(users: Any, users_file: Any, history: Any, times: Any) -> None:
    """Refuse flags that exclude each other."""
    if sum(given is not None for given in (users, users_file, history)) > 1:
        raise InputError("give one of --users, --users-file and --history")
    if users == [] or history == []:
        raise InputError("no id given; write one or more after --users or --history")
    if times is not None and history is None:
        raise InputError("--times belong to the items of --history; give both")


def _recommend_on_cluster(
    run: str,
    cluster: ClusterConfig | None,
    out: str | None,
    format: str | None,
    json: str | None,
    files: tuple[list[str] | None, Path | None, Path | None, Path | None, Path | None],
    overwrite: bool,
    options: dict[str, Any],
) -> None:
    """Recommend on a Ray cluster. ``files`` are users, and the files of users, allowed, denied and new items."""
    users, users_file, allow, deny, new_items = files
    if new_items is not None:
        raise InputError("--engine ray ranks the items of the run; leave out --new-items, or --engine")
    if out is None or format not in (None, "parquet"):
        raise InputError("--engine ray writes Parquet parts; give --out FOLDER, or a URL, and no other --format")
    from seqrec.cluster.recommend import MANIFEST, recommend_on_cluster
    from seqrec.cluster.runs import open_run

    manifest = None if is_url(out) else Path(out, MANIFEST)
    check_outputs(manifest, json, reads=[users_file, allow, deny], run=None if is_url(run) else run)
    asked = _asked(users, users_file, open_run(run).dataset)
    assert cluster is not None
    found = recommend_on_cluster(run, out, cluster, users=asked, overwrite=overwrite, **_items(allow, deny), **options)
    rows = found["complete"]["rows"]
    text = f"{rows:,} rows for {found['users']:,} users are in {out} (Parquet parts: {found['parts']:,})"
    output(json).print(text, highlight=False, soft_wrap=True)
    write_json(json, {"out": out, **found})


def _asked(users: list[str] | None, users_file: Path | None, dataset: "Dataset") -> "pl.Series | None":
    """The ids of users that the command names, in the type of the log's ids."""
    from seqrec.data.formats.ids import read_ids

    asked = read_ids(users_file, "user_id") if users_file else users
    return None if asked is None else like(asked, dataset.users.dtype)


def _items(allow: Path | None, deny: Path | None) -> dict[str, Any]:
    """The ids of items that the files of the command name."""
    from seqrec.data.formats.ids import read_ids

    return {
        name: None if file is None else read_ids(file, "item_id") for name, file in (("allow", allow), ("deny", deny))
    }


def _is_for_cluster(run: str, cluster: ClusterConfig | None, history: bool = False, overwrite: bool = False) -> bool:
    """Whether a command runs on a cluster, after checking the options for that."""
    config = cluster or ClusterConfig()
    if config.storage is not None:
        raise InputError(
            "--storage has no effect on this command, which keeps nothing unfinished elsewhere; leave it out"
        )
    if config.engine == "local" and is_url(run):
        raise InputError(f"{run}: is a URL; give a run folder, or --engine ray")
    if config.engine == "local" and overwrite:
        raise InputError("--overwrite is for --engine ray; a file is always replaced")
    if config.engine != "local" and history:
        raise InputError("--history is answered in this process; leave out --engine ray")
    return config.engine != "local"


@with_flags
def similar_command(
    run: Annotated[Path, Parameter(group=INPUT)],
    *items: Annotated[str, Parameter(allow_leading_hyphen=True, group=INPUT)],
    k: _K = 10,
    new_items: Annotated[Path | None, Parameter(group=INPUT)] = None,
    out: Out = None,
    format: Format = None,
    json: Json = None,
) -> None:
    """Find similar items.

    Args:
        run: Run folder.
        items: Item ids.
        k: Number of similar items per item.
        new_items: File that describes items which training never saw, as for recommend.
        out: File to write to. By default standard output.
    """
    if not items:
        raise InputError("no item given; write its id after the run folder")
    check_outputs(out, json, reads=[new_items], run=run)
    frame = _loaded(run, new_items).similar(items, k, strict=True)
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


def _loaded(run: str | Path, new_items: Path | None = None) -> "Recommender":
    """Open a run, and add new items if there are any. This imports torch."""
    from seqrec.recommender import Recommender

    recommender = Recommender.load(run)
    return recommender if new_items is None else recommender.add_items(new_items)
