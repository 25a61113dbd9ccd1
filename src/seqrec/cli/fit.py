"""The command ``fit``: one function per model, under the model's name, because each model has its own flags."""

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console

from seqrec.cli.begin import began
from seqrec.cli.commands import ReadConfig, given_options, log_facts, prepared, show_log
from seqrec.cli.console import output, write_json
from seqrec.cli.flags import INPUT, MODEL, OUTPUT, TRAINING, Items, Json, Track, Users, flag, with_flags
from seqrec.cluster.config import ClusterConfig
from seqrec.data.prepare import PrepareConfig
from seqrec.data.split import TRAINED, SplitConfig
from seqrec.errors import InputError, TrainingWarning, warn
from seqrec.models import AUTO, MODELS, named_model
from seqrec.report.tables import groups_table, table
from seqrec.run.outputs import check_log, check_outputs
from seqrec.training.budget import Budget
from seqrec.training.config import TrainConfig

if TYPE_CHECKING:
    from seqrec.cluster.worker import Outcome
    from seqrec.recommender import Recommender


def __getattr__(name: str) -> Any:
    """The command with the flags of a model. An unknown model gets the flags of sasrec; running it is an error."""
    if name.startswith("__"):
        raise AttributeError(name)
    return fit_command(name if name in MODELS else "sasrec")


def fit_command(model: str) -> Any:
    """The command with the flags of one model."""
    config = MODELS[model].Config

    @with_flags
    def fit(
        log: Annotated[str, Parameter(group=INPUT)],
        *,
        out: Annotated[Path, Parameter(group=OUTPUT)],
        items: Items = None,
        users: Users = None,
        model: Annotated[Literal[(AUTO, *MODELS)], Parameter(group=MODEL)] = AUTO,  # type: ignore[valid-type]
        sizes: config | None = None,  # type: ignore[valid-type]
        training: TrainConfig | None = None,
        split: SplitConfig | None = None,
        read: ReadConfig | None = None,
        filters: PrepareConfig | None = None,
        refit: Annotated[Literal["off", "all", "valid"], Parameter(group=TRAINING)] = "off",
        minutes: Annotated[float | None, Parameter(group=TRAINING)] = None,
        init_from: Annotated[Path | None, Parameter(group=TRAINING)] = None,
        cluster: ClusterConfig | None = None,
        track: Track = None,
        resume: Annotated[bool, Parameter(group=OUTPUT, show_default=False)] = False,
        overwrite: Annotated[bool, Parameter(group=OUTPUT, show_default=False)] = False,
        json: Json = None,
    ) -> int:
        """Train a model on a log.

        Args:
            log: Log file, or folder of Parquet parts; with --engine ray also its URL (s3://, gs://, hdfs://).
            out: Run folder to write. It must be new or empty, unless --resume or --overwrite is given. With --engine
                ray and without --storage, it must be on a file system that all machines of the cluster share.
            model: Model to train; --model NAME --help shows its options. auto: sasrec, others beside it if time allows.
            refit: What to train the same model on once more after the test, with the same options and as many epochs as
                validation chose. all: the whole log, so that recommendations rest on everything that is known; valid:
                all but the test items, and test again. --resume adds it to a run that has ended.
            minutes: Time limit for the whole command, kept within about 10 %: training ends early enough for the tests
                and the refit, and options that are not given may depend on it. A run that it ends can be resumed with
                more minutes. By default training ends by --patience or --epochs.
            init_from: Run folder to start from instead of anew: the weights of items and users with the same ids are
                kept, and options of the model and of training that are not given are those of that run. For a newer log
                of the same catalogue; training then stops sooner.
            track: Also record options, epochs and tests, in local files. mlflow: where MLflow's own settings say, by
                default mlflow.db in the current folder; tensorboard: in the folder that TENSORBOARD_LOGGING_DIR names,
                by default tensorboard beside the run folder.
            resume: Continue the run in the folder exactly where its last checkpoint left off.
            overwrite: Replace the run in the folder.
        """
        with _together() as is_first:
            if not is_first:
                return 0
            budget = Budget(minutes, began()) if minutes is not None else None
            options = given_options(sizes, training, split, filters) | {"refit": refit}
            where = _Where(log, out, items, users, init_from, track, resume, overwrite, json)
            if MODELS[named_model(model)[0]].COUNTED:
                _warn_of_unused(model, training)
            return _fit(where, model, options, read, filters, budget, cluster or ClusterConfig())

    return fit


@dataclass(frozen=True)
class _Where:
    """The files of a fit, and what to do with a run that is there already."""

    log: str
    out: Path
    items: Path | None
    users: Path | None
    init_from: Path | None
    track: Track
    resume: bool
    overwrite: bool
    json: str | None


def _fit(
    where: _Where, model: str, options: dict[str, Any], read: ReadConfig | None, filters: PrepareConfig | None,
    budget: Budget | None, cluster: ClusterConfig,
) -> int:  # fmt: skip
    """Read, train and show."""
    from seqrec.recommender import Recommender  # the help does not need it
    from seqrec.run.folder import Run
    from seqrec.run.place import check_free, reading
    from seqrec.training.tracking import check_tracker

    out, json = where.out, where.json
    is_counted = MODELS[named_model(model)[0]].COUNTED
    cluster.check()
    if where.track is not None:
        if cluster.engine == "ray" and not is_counted:
            raise InputError("track is not available with engine ray; leave out one of them")
        check_tracker(where.track)
    check_outputs(json, reads=[where.log, where.items, where.users], run=out)
    check_log(where.log, out)
    if not where.resume:
        check_free(out, where.overwrite)  # reading the log may take a while
        if (earlier := where.init_from) is not None:
            reading(earlier, lambda: Run(earlier))
    dataset, summary = prepared(where.log, read, filters, (where.items, where.users), cluster, out)
    recommender = Recommender(model, **options)
    console = output(json)
    show_log(console, dataset, summary)
    ways: dict[str, Any] = {"progress": json != "-", "console": console, "minutes": budget}
    ways |= {"resume": where.resume, "overwrite": where.overwrite, "init_from": where.init_from}
    fit: Recommender | Outcome
    if cluster.engine == "ray" and is_counted:
        warn(f"{model} is counted in one pass, which this process does instead of the cluster", TrainingWarning)
    if cluster.engine == "ray" and not is_counted:
        from seqrec.cluster.train import fit_on_cluster

        fit = fit_on_cluster(dataset, out, cluster, model, options, **ways)
    else:
        fit = recommender.fit(dataset, out, track=where.track, **ways)
    show_end = _say_stopped if fit.interrupted else _show_result
    show_end(console, fit, out, where.overwrite)
    facts = {"run": str(out), "interrupted": fit.interrupted, "log": log_facts(dataset, summary)}
    write_json(json, facts | fit.metrics)
    return 130 if fit.interrupted else 0


@contextmanager
def _together() -> Iterator[bool]:
    """Join the other processes if there are any, as torchrun starts them; yields whether this is the first or only one.

    The others have done their part of the training when the block begins.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield True
        return
    from seqrec.training.following import follow
    from seqrec.training.processes import launched

    with launched() as processes:
        is_first = processes is None or processes.is_first
        if processes is not None and not is_first:
            follow(processes)
        yield is_first


def _say_stopped(console: Console, recommender: "Recommender | Outcome", out: Path, overwrite: bool) -> None:
    """Print what a fit that the user stopped leaves."""
    in_refit = bool(recommender.evaluations) and recommender.trained_on == "train"
    has = "the weights from before the refit" if in_refit else "the weights so far"
    before = "; the old run was removed" if overwrite else ""
    console.print(f"stopped; {out} has {has}, --resume continues{before}", soft_wrap=True)


def _show_result(console: Console, recommender: "Recommender | Outcome", out: Path, overwrite: bool) -> None:
    del overwrite
    show_result(console, recommender, out, "--resume --refit all")


def show_result(console: Console, recommender: "Recommender | Outcome", out: Path, again: str) -> None:
    """Print how training ended, the tests, and what the weights in use were trained on.

    Args:
        console: where to print.
        recommender: what was trained.
        out: its run folder.
        again: what trains the weights again with all items.
    """
    console.print(recommender.summary, highlight=False)
    if (counts := recommender.metrics.get("transitions")) is not None:
        found = counts["validation"]
        how = f"added with weight {counts['weight']:.3g}" if counts["weight"] else "not added, because they do not help"
        text = f"transition counts: {how} (NDCG@10 of {found['users']:,} validation users {found['alone']:.4f} alone, "
        text += f"{found['summed']:.4f} with them, p {found['p']:.2g})"
        console.print(text, highlight=False, soft_wrap=True)
    for evaluation in (*recommender.evaluations.values(), *recommender.refit_evaluations.values()):
        console.print(table(evaluation, recommender.label))
        if evaluation.protocol == "full":
            console.print(groups_table(evaluation, recommender.label))
    meaning = {
        "train": f"; {again} trains them again with all items, for recommending",
        "train+valid": "",
        "all": ", so nothing is left to test them on; the figures are of the weights from before the refit",
    }[recommender.trained_on]
    if recommender.evaluations or recommender.trained_on != "train":  # otherwise nothing was held out for a test
        text = f"the weights in use were trained {TRAINED[recommender.trained_on]}{meaning}"
        console.print(text, highlight=False, soft_wrap=True)
    page = shlex.join(["seqrec", "report", str(out), "--out", f"{out.name}.html"])
    console.print(f"run written to {out}; a page about it: {page}", soft_wrap=True)


def _warn_of_unused(model: str, training: TrainConfig | None) -> None:
    """Warn about options of training given for a model that is only counted; those of the machine do no harm."""
    plain = vars(TrainConfig())
    given = {name for name, value in vars(training or TrainConfig()).items() if value != plain[name]}
    if unused := sorted(given - {"device", "threads", "seed"}):
        warn(f"{model} is counted in one pass and does not use {', '.join(map(flag, unused))}", TrainingWarning)
