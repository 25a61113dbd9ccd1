"""The refit: once its figures are known, the recipe of a run is trained again on more of the log."""

from collections.abc import Callable
from typing import Any

from seqrec.data.split import Split
from seqrec.errors import InputError
from seqrec.models.base import Model
from seqrec.run.config import RunConfig
from seqrec.run.folder import DATA, Run
from seqrec.run.refit import RefitPlan, RefitRun
from seqrec.run.start import Start
from seqrec.training.config import TrainConfig
from seqrec.training.following import Job
from seqrec.training.loop import train
from seqrec.training.plan import counted, fresh_model
from seqrec.training.processes import Processes


def refit(
    config: RunConfig,
    split: Split,
    training: TrainConfig,
    plan: RefitPlan,
    run: Run | None,
    progress: bool = False,
    processes: Processes | None = None,
    start: Callable[[], Start] | None = None,
    watch: Callable[[dict[str, Any]], None] | None = None,
) -> tuple[Model | None, bool]:
    """Train the recipe of a run again from its first weights, with the same seed, for a fixed number of epochs.

    Whatever the run learnt or counted from the training histories is learnt or counted again here.

    Args:
        config: configuration of the run.
        split: split of the first training.
        training: options of the first training. Schedules of the learning rate still span all of its ``epochs``.
        plan: what to train on, and the epoch that validation chose.
        run: run folder, whose weights are replaced when the refit is complete. A refit that was begun there continues.
        progress: show a progress bar.
        processes: processes that train together; the others follow.
        start: function that returns the weights of another run that the first training started from.
        watch: function that is called with the row of every epoch; see :func:`seqrec.train`.

    Returns:
        The model in evaluation mode, or None if the refit is not complete; and whether it was interrupted.

    Raises:
        InputError: the refit failed. The run keeps the weights that it had.
    """
    model = fresh_model(config, split.train.dataset)
    again = split.refit(plan.trained_on)
    files = RefitRun(run, plan) if run is not None else None
    interrupted = False
    if files is not None:
        files.forget_states(but=files.prefix)
    if files is not None and files.complete:
        files.load_weights(model, plan.trained_on)
    elif model.COUNTED:
        counted(model, again.train)
        if files is not None:
            files.save_weights(model.state_dict())
    else:
        if processes is not None and files is not None:
            processes.same_on_all(Job(config, training, str((files.folder / DATA).resolve()), plan))
        ways: dict[str, Any] = {"run": files, "resume": True, "progress": progress, "processes": processes}
        ways |= {"start": start, "watch": watch}
        try:
            trained = train(model, again, training, refit=plan, **ways)
        except InputError as error:
            error.args = (f"the refit failed: {error}",)
            raise
        interrupted = trained.ended == "interrupted"
        if trained.best_epoch == 0:
            return None, interrupted
    if files is not None:
        files.forget_states()
    return model.eval(), interrupted
