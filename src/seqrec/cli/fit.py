"""The command ``fit``: one function per model, under the model's name, because each model has its own flags."""

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from seqrec.cli.commands import ReadConfig, log_facts, merged, prepared, show_log
from seqrec.cli.console import output, write_json
from seqrec.cli.flags import INPUT, MODEL, OUTPUT, Items, Json, flag, with_flags
from seqrec.data.prepare import PrepareConfig
from seqrec.data.split import SplitConfig
from seqrec.errors import TrainingWarning, warn
from seqrec.models import MODELS
from seqrec.report.tables import groups_table, table
from seqrec.run.outputs import check_log, check_outputs
from seqrec.training.config import TrainConfig


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
        log: Annotated[Path, Parameter(group=INPUT)],
        *,
        out: Annotated[Path, Parameter(group=OUTPUT)],
        items: Items = None,
        model: Annotated[Literal[tuple(MODELS)], Parameter(group=MODEL)] = "sasrec",  # type: ignore[valid-type]
        sizes: config | None = None,  # type: ignore[valid-type]
        training: TrainConfig | None = None,
        split: SplitConfig | None = None,
        read: ReadConfig | None = None,
        filters: PrepareConfig | None = None,
        resume: Annotated[bool, Parameter(group=OUTPUT, show_default=False)] = False,
        overwrite: Annotated[bool, Parameter(group=OUTPUT, show_default=False)] = False,
        json: Json = None,
    ) -> int:
        """Train a model on a log.

        Args:
            log: Log file, or folder of Parquet parts.
            out: Run folder to write. It must be new or empty, unless --resume or --overwrite is given.
            model: Model to train. seqrec fit --model NAME --help shows its options.
            resume: Continue the run in the folder exactly where its last checkpoint left off.
            overwrite: Replace the run in the folder.
        """
        from seqrec.recommender import Recommender  # the help does not need it
        from seqrec.run.folder import check_free

        check_outputs(json, reads=[log, items], run=out)
        check_log(log, out)
        if not resume:
            check_free(out, overwrite)  # reading the log may take a while
        if MODELS[model].COUNTED:
            _warn_of_unused(model, training)
        dataset, summary = prepared(log, read, filters, items)
        recommender = Recommender(model, **vars(sizes or config()) | merged(training, split, filters))
        console = output(json)
        show_log(console, dataset, summary)
        shown: dict[str, Any] = {"progress": json != "-", "console": console}
        recommender.fit(dataset, out, resume=resume, overwrite=overwrite, **shown)
        if recommender.interrupted:
            before = "; the old run was removed" if overwrite else ""
            console.print(f"stopped; {out} has the weights so far, --resume continues{before}", soft_wrap=True)
        else:
            console.print(recommender.summary, highlight=False)
            for protocol, evaluation in recommender.evaluations.items():
                console.print(table(evaluation, model))
                if protocol == "full":
                    console.print(groups_table(evaluation, model))
            console.print(f"run written to {out}", soft_wrap=True)
        facts = {"run": str(out), "interrupted": recommender.interrupted, "log": log_facts(dataset, summary)}
        write_json(json, facts | recommender.metrics)
        return 130 if recommender.interrupted else 0

    return fit


def _warn_of_unused(model: str, training: TrainConfig | None) -> None:
    """Warn about options of training given for a model that is only counted; those of the machine do no harm."""
    plain = vars(TrainConfig())
    given = {name for name, value in vars(training or TrainConfig()).items() if value != plain[name]}
    if unused := sorted(given - {"device", "threads", "seed"}):
        warn(f"{model} is counted in one pass and does not use {', '.join(map(flag, unused))}", TrainingWarning)
