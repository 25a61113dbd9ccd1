"""The command ``tune``: one function per model, under the model's name, because each model has its own flags."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console

from seqrec.cli.begin import began
from seqrec.cli.commands import ReadConfig, log_facts, merged, prepared, show_log
from seqrec.cli.console import output, write_json
from seqrec.cli.fit import show_result
from seqrec.cli.flags import INPUT, MODEL, OUTPUT, TRAINING, Items, Json, Track, Users, with_flags
from seqrec.cluster.config import ClusterConfig
from seqrec.data.dataset import Dataset
from seqrec.data.prepare import PrepareConfig
from seqrec.data.split import SplitConfig
from seqrec.models import AUTO, MODELS
from seqrec.run.outputs import check_log, check_outputs
from seqrec.tools.config import TuneConfig
from seqrec.training.budget import Budget
from seqrec.training.config import TrainConfig

if TYPE_CHECKING:
    from seqrec.tools.tune import Tuned, Workers


def __getattr__(name: str) -> Any:
    """The command with the flags of a model. An unknown model gets the flags of sasrec; running it is an error."""
    if name.startswith("__"):
        raise AttributeError(name)
    return tune_command(name if name in MODELS else "sasrec")


def tune_command(model: str) -> Any:
    """The command with the flags of one model."""
    config = MODELS[model].Config

    @with_flags
    def tune(
        log: Annotated[Path, Parameter(group=INPUT)],
        *,
        out: Annotated[Path, Parameter(group=OUTPUT)],
        items: Items = None,
        users: Users = None,
        model: Annotated[Literal[(AUTO, *MODELS)], Parameter(group=MODEL)] = AUTO,  # type: ignore[valid-type]
        search: TuneConfig | None = None,
        sizes: config | None = None,  # type: ignore[valid-type]
        training: TrainConfig | None = None,
        split: SplitConfig | None = None,
        read: ReadConfig | None = None,
        filters: PrepareConfig | None = None,
        refit: Annotated[Literal["off", "all", "valid"], Parameter(group=TRAINING)] = "off",
        cluster: ClusterConfig | None = None,
        track: Track = None,
        overwrite: Annotated[bool, Parameter(group=OUTPUT, show_default=False)] = False,
        json: Json = None,
    ) -> int:
        """Tune a model.

        Args:
            log: Log file, or folder of Parquet parts.
            out: Run folder to write. The study is beside it, in OUT.tune; the same command goes on with it.
            model: Model to tune; --model NAME --help shows its options. Given ones, except defaults, are not searched.
            refit: What to train the best options on once more after the test, as in fit.
            track: Also record each trial and the fit, as fit --track does, below one record of the search.
            overwrite: Replace the run in the folder, and begin a new study.
        """
        search, cluster = search or TuneConfig(), cluster or ClusterConfig()
        budget = Budget(search.minutes, began()) if search.minutes is not None else None
        options = vars(sizes or config()) | merged(training, split, filters) | {"refit": refit}
        cluster.check()
        check_outputs(json, reads=[log, items, users], run=out)
        check_log(log, out)
        from seqrec.tools.tune import check_local, check_tunable, tune_model  # imports torch

        check_tunable(model, options["evaluate_every"])
        check_local(track, cluster.engine == "local")
        dataset, summary = prepared(log, read, filters, (items, users))
        console = output(json)
        show_log(console, dataset, summary)
        shown: dict[str, Any] = {"overwrite": overwrite, "progress": json != "-", "console": console, "track": track}
        with _workers(dataset, cluster) as workers:
            found = tune_model(dataset, out, model, search, workers=workers, budget=budget, **shown, **options)
        _show(console, found, out, json, log_facts(dataset, summary))
        return 130 if found.interrupted else 0

    return tune


@contextmanager
def _workers(dataset: Dataset, cluster: ClusterConfig) -> Iterator["Workers | None"]:
    """What runs the trials, as the engine says; None for this process."""
    if cluster.engine == "local":
        yield None
        return
    from seqrec.cluster.engine import connected
    from seqrec.cluster.trials import SideBySide
    from seqrec.tools.trial import Outcome, attempted

    def failed(reason: str) -> Outcome:
        return Outcome("failed", reason=reason)

    with connected(cluster) as ray:
        yield SideBySide(ray, cluster, attempted, failed, dataset)


def _show(console: Console, found: "Tuned", out: Path, json: str | None, log: dict[str, Any]) -> None:
    """Print and write what the search found."""
    console.print(found.table())
    facts = {"run": str(out), "interrupted": found.interrupted, "log": log}
    done = found.recommender
    if done is not None and not done.interrupted:
        show_result(console, done, out, "the same command with --refit all")
    else:
        console.print(f"stopped; {found.study} has the trials, the same command goes on", soft_wrap=True)
    write_json(json, facts | found.to_dict() | (done.metrics if done is not None else {}))
