"""What the other processes do while the first one fits a model: they train whenever it trains."""

from dataclasses import dataclass
from pathlib import Path

from seqrec.data.dataset import Dataset
from seqrec.errors import InputError
from seqrec.run.config import RunConfig
from seqrec.run.refit import RefitPlan
from seqrec.training.config import TrainConfig
from seqrec.training.loop import train
from seqrec.training.plan import fresh_model
from seqrec.training.processes import Processes


@dataclass(frozen=True)
class Job:
    """A training that all processes do together.

    Args:
        config: configuration of the run.
        training: options of the training.
        data: folder of the run's dataset, on a file system that all processes share.
        refit: what the training is, if it is a refit.
    """

    config: RunConfig
    training: TrainConfig
    data: str
    refit: RefitPlan | None = None


def follow(processes: Processes, data: Path | None = None) -> None:
    """Do every training that the first process announces, until it announces None.

    Args:
        processes: this process and the others.
        data: folder with a copy of the dataset. By default that of the run, on a file system that all processes share.
    """
    while (job := processes.same_on_all(None)) is not None:
        folder = Path(job.data) if data is None else data
        if not folder.is_dir():
            raise InputError(
                f"{folder}: is not on this machine; give a run folder on a file system that all processes share"
            )
        dataset = Dataset.load(folder).check()
        split = job.config.split.apply(dataset)
        if job.refit is not None:
            split = split.refit(job.refit.trained_on)
        model = fresh_model(job.config, dataset)
        train(
            model, split, job.training, keep_seen=bool(job.config.split.keep_seen), refit=job.refit, processes=processes
        )
