"""What each worker of a training on a cluster does: the first one fits, the others follow.

A worker that starts again, after a worker or a machine was lost, continues from the last checkpoint.
"""

import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree
from typing import TYPE_CHECKING, Any

from rich.console import Console

from seqrec.cluster.board import posting
from seqrec.data.dataset import Dataset
from seqrec.data.split import TrainedOn
from seqrec.device import threads
from seqrec.errors import InputError, RunWarning, TrainingWarning, one_line, warn
from seqrec.files import all_beside
from seqrec.ranking.protocols import Evaluation
from seqrec.recommender import Recommender
from seqrec.run.layout import CONFIG, DATA, is_run
from seqrec.training.budget import Budget
from seqrec.training.following import follow
from seqrec.training.processes import Processes, joining

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

AGAIN = 5.0  # seconds until an upload is tried again
FAILS = "the storage can't be written"
REPORTS = 2.0  # seconds between reports to Ray Train, which reads one of them every two seconds
RUN = "run"  # folder of the run that is continued, below the work folder


@dataclass(frozen=True)
class Work:
    """The folder that all workers read, with the dataset, and what Ray keeps of the training.

    Args:
        system: file system (pyarrow).
        parent: folder in it.
        name: name of the work folder there.
        keeps_run: whether it also holds the checkpoints. Otherwise the run folder is on a shared file system.
    """

    system: "FileSystem"
    parent: str
    name: str
    keeps_run: bool

    def path(self, *names: str) -> str:
        """A path on the file system."""
        return "/".join([self.parent, self.name, *names])

    def has(self, *names: str) -> bool:
        """Whether a file or folder is there."""
        from pyarrow.fs import FileType

        return bool(self.system.get_file_info(self.path(*names)).type != FileType.NotFound)

    def fetch(self, name: str, to: Path) -> Path:
        """Copy a folder to this machine."""
        from pyarrow.fs import copy_files

        to.mkdir(parents=True, exist_ok=True)
        copy_files(self.path(name), str(to), source_filesystem=self.system)
        return to


@dataclass(frozen=True)
class Job:
    """A training on a cluster.

    Args:
        out: run folder, absolute.
        work: folder that all workers read.
        model: name of the model.
        options: options of the :class:`Recommender`.
        resume: continue the run in ``out``.
        overwrite: replace the run in ``out``.
        replaced: which run that is; see :func:`identity`.
        progress: print a line per epoch.
        width: width of the terminal.
        minutes: time limit, and the time of day when it began.
        threads: number of threads per worker.
        init_from: run that training starts from, absolute.
    """

    out: Path
    work: Work
    model: str
    options: dict[str, Any]
    resume: bool
    overwrite: bool
    replaced: tuple[int, int] | None
    progress: bool
    width: int
    minutes: tuple[float, float] | None
    threads: int
    init_from: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """What a fit on a cluster tells about the run; attributes as of :class:`Recommender`."""

    label: str
    trained_on: TrainedOn
    interrupted: bool
    summary: str
    epochs: list[dict[str, Any]]
    metrics: dict[str, Any]
    evaluations: dict[str, Evaluation]
    refit_evaluations: dict[str, Evaluation]


class Workers(Processes):
    """The workers that train together, which report to Ray Train.

    Args:
        rank: number of this worker.
        world: number of workers.
        keeps: whether checkpoints are copied to the storage.
        asked: set when the user wants to stop.
    """

    def __init__(self, rank: int, world: int, keeps: bool, asked: threading.Event) -> None:
        super().__init__(rank, world)
        self.keeps, self.asked = keeps, asked
        self._idle = threading.Event()  # no upload is running
        self._idle.set()
        self._reported = time.monotonic()

    def interrupted(self) -> bool:
        """Whether the user wants to stop."""
        return self.asked.is_set()

    def saved(self, folder: Path | None, row: dict[str, Any] | None) -> None:
        """Report the metrics of an epoch, and the checkpoint, unless the last one is still on its way.

        Ray takes the reports of all workers in turn: one after an upload that hangs would block the others.
        """
        if not self.keeps and row is None:
            return
        if not self.same_on_all(self._idle.is_set() and time.monotonic() - self._reported >= REPORTS):
            return
        self._reported = time.monotonic()
        self._report(row or {}, folder if self.keeps else None, waits=False)

    def finish(self, folder: Path | None) -> None:
        """Report the finished run; every worker calls this."""
        if self.keeps:
            self._report({}, folder, waits=True)

    def _report(self, metrics: dict[str, Any], folder: Path | None, waits: bool) -> None:
        """Report as all workers do, the first one with the checkpoint. Ray copies it while training goes on."""
        from ray import train

        if not self.is_first or not self.keeps:
            train.report(metrics)
            return
        ways: dict[str, Any] = {}
        if folder is not None:
            self._idle.clear()
            # Files of a run are never changed in place, so links to them are a copy.
            copy = tempfile.mkdtemp(dir=folder.parent)
            copytree(folder, copy, copy_function=os.link, ignore=_data_of(folder), dirs_exist_ok=True)
            ways = {"checkpoint": train.Checkpoint.from_directory(copy), "checkpoint_upload_fn": self._upload}
            ways["delete_local_checkpoint_after_upload"] = True
        mode = train.CheckpointUploadMode.SYNC if waits else train.CheckpointUploadMode.ASYNC
        train.report(metrics, checkpoint_upload_mode=mode, **ways)

    def _upload(self, checkpoint: Any, name: str) -> Any:
        """Copy a checkpoint to the storage as Ray does, but outlast a failure: Ray would start the workers again."""
        from ray import train

        storage, told = train.get_context().get_storage(), False
        while True:
            try:
                done = storage.persist_current_checkpoint(checkpoint, name)
                break
            except OSError as error:
                if not told:
                    warn(f"{FAILS} ({one_line(error)}); training goes on, and the checkpoint is "
                         "copied once it can", RunWarning)  # fmt: skip
                told = True
                time.sleep(AGAIN)
        self._idle.set()
        return done


def _data_of(folder: Path) -> Callable[[str, list[str]], set[str]]:
    """Leaves out the dataset of a run, which the storage has."""
    return lambda inside, names: {DATA} & {*names} if Path(inside) == folder else set()


def identity(run: Path) -> tuple[int, int] | None:
    """What tells a run folder from another one that replaced it; None if there is no run."""
    try:
        about = (run / CONFIG).stat()
    except OSError:
        return None
    return about.st_ino, about.st_mtime_ns


def work_on(given: dict[str, Any]) -> None:
    """Train as one of the workers of a Ray Train run. The first one leaves the :class:`Outcome` on the board."""
    import ray
    from ray import train

    job, board = given["job"], given["board"]
    if ray.get(board.failed.remote()) is not None:
        return
    context, asked = train.get_context(), threading.Event()
    workers = Workers(context.get_world_rank(), context.get_world_size(), job.work.keeps_run, asked)
    try:
        with (
            threads(job.threads),
            joining(workers),
            tempfile.TemporaryDirectory(dir=os.getcwd()) as scratch,
            _telling(board),
        ):
            if workers.is_first:
                with posting(board, asked):
                    outcome = _lead(job, workers, Path(scratch), ray.get(board.begin.remote()))
                ray.get(board.end.remote(outcome))
            else:
                follow(workers, _data(job, Path(scratch)))
                workers.finish(None)
    except Exception:
        if ray.get(board.failed.remote()) is None:
            raise  # Ray starts the workers again


@contextmanager
def _telling(board: Any) -> Iterator[None]:
    """Note an error on the board that would happen again: bad input or a bug, not a lost connection or machine."""
    import ray
    from torch.distributed import destroy_process_group

    try:
        yield
    except (RuntimeError, OSError, ray.exceptions.RayError):
        raise
    except Exception as error:
        ray.get(board.fail.remote(error))
        destroy_process_group()  # the other workers, which wait for this one, end too
        raise


def _data(job: Job, scratch: Path) -> Path:
    """The dataset on this machine."""
    if job.work.keeps_run:
        return job.work.fetch(DATA, scratch / DATA)
    data = Path(job.work.path(DATA))
    if not data.is_dir():
        raise InputError(
            f"{job.out}: {platform.node()} does not see this folder; give --out on a file system that all machines "
            "share, or --storage URL"
        )
    return data


def _lead(job: Job, workers: Workers, scratch: Path, attempt: int) -> Outcome:
    """Fit as in one process. The other workers follow."""
    data = _data(job, scratch)
    if attempt > 1:
        warn("workers were lost, and training goes on from the last checkpoint", TrainingWarning)
    with _run_folder(job, data, scratch) as (out, resume, overwrite):
        if not job.work.keeps_run:
            overwrite = job.overwrite and not (job.resume or (attempt > 1 and _is_begun(job)))
            resume = job.resume or (attempt > 1 and not overwrite)
        budget = None
        if job.minutes is not None:
            minutes, begun = job.minutes
            budget = Budget(minutes, time.monotonic() - (time.time() - begun))
        console = Console(width=job.width, markup=False, emoji=False)
        recommender = Recommender(job.model, **job.options)
        recommender.fit(Dataset.load(data), out, resume=resume, overwrite=overwrite, progress=job.progress,
                        minutes=budget, console=console, init_from=job.init_from)  # fmt: skip
        workers.finish(out)
    names = Outcome.__dataclass_fields__
    return Outcome(**{name: getattr(recommender, name) for name in names})


@contextmanager
def _run_folder(job: Job, data: Path, scratch: Path) -> Iterator[tuple[Path, bool, bool]]:
    """The run folder to write, whether to continue the run in it, and whether to replace it."""
    from ray import train

    if not job.work.keeps_run:
        yield job.out, job.resume, job.overwrite
        return
    out = scratch / job.out.name
    checkpoint = train.get_checkpoint()
    if checkpoint is not None:
        checkpoint.to_directory(str(out))
    elif job.resume and job.work.has(RUN):
        job.work.fetch(RUN, out)
    if is_run(out):
        copytree(data, out / DATA, copy_function=os.link)
    yield out, is_run(out), False


def _is_begun(job: Job) -> bool:
    """Whether an earlier attempt has begun the run that replaces another."""
    return bool(all_beside(job.out, "new")) or (is_run(job.out) and identity(job.out) != job.replaced)
