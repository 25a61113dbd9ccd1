"""Training on a Ray cluster, by the workers of Ray Train.

Ray starts the workers, and starts them again if one is lost or a machine is. They continue from the last checkpoint:
the run folder itself, if all machines share its file system, or otherwise a copy in the storage.
"""

import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console

from seqrec.cluster.board import EVERY, check, new_board, show
from seqrec.cluster.config import ClusterConfig
from seqrec.cluster.engine import connected, workers_of
from seqrec.cluster.storage import filesystem_at
from seqrec.cluster.worker import AGAIN, FAILS, RUN, Job, Outcome, Work, identity, work_on
from seqrec.data.dataset import Dataset
from seqrec.errors import InputError, RunWarning, TrainingWarning, one_line, warn
from seqrec.files import explained, replacing_folder
from seqrec.models import MODELS, named_model
from seqrec.recommender import Recommender
from seqrec.run.folder import Run
from seqrec.run.layout import DATA, is_run
from seqrec.run.place import Place, check_free
from seqrec.training.budget import Budget
from seqrec.training.processes import PATIENCE

FAILURES = 20  # lost workers or machines, after which training gives up
LOST = 45.0  # seconds without an answer, after which the cluster counts as lost; Ray ends this process after 60
#: Settings of Ray Train that hold unless somebody has set them: seconds until workers must have started. They import
#: torch, which may take more than the usual minute on a busy machine or from a network drive.
SETTINGS = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "900"}
_SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray's list of checkpoints


def fit_on_cluster(
    dataset: Dataset,
    out: str | Path,
    cluster: ClusterConfig,
    model: str,
    options: dict[str, Any],
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    console: Console | None = None,
    minutes: Budget | None = None,
    init_from: Path | None = None,
) -> Outcome:
    """Fit a model on the workers of a Ray cluster; see :meth:`Recommender.fit`.

    Ctrl-C stops after the current step with a checkpoint, as in one process.

    Args:
        dataset: dataset to fit.
        out: run folder, on a file system that all machines share unless ``cluster`` has a storage.
        cluster: the cluster, the number of workers and their threads.
        model: name of the model.
        options: options of the :class:`Recommender`.
        resume: continue the run in ``out``, with any number of workers; or from the last checkpoint in the storage.
        overwrite: replace the run in ``out``.
        progress: print a line per epoch.
        console: where lines are printed.
        minutes: time limit, which has begun.
        init_from: run that training starts from, on a file system that all machines share.

    Raises:
        InputError: the input or an option is bad, the cluster can't be used, or it lost too many workers.
    """
    if MODELS[named_model(model)[0]].COUNTED:
        raise InputError(f"{model} is counted in one pass by one process; leave out --engine ray")
    Recommender(model, **options)  # checks the options
    out = Path(os.path.abspath(out))
    console = console or Console(quiet=True)
    if not resume:
        check_free(out, overwrite)
    with connected(cluster) as ray:
        work = _work_of(cluster, out)
        _prepare(work, dataset, out, resume, overwrite)
        threads = options.get("threads") or cluster.worker_threads
        limit = None
        if minutes is not None:
            limit = minutes.minutes, time.time() - (minutes.clock() - minutes.begun)
        job = Job(out, work, model, options | {"threads": threads}, resume, overwrite, identity(out), progress,
                  console.width, limit, threads, init_from and Path(os.path.abspath(init_from)))  # fmt: skip
        try:
            outcome, checkpoint = _run(ray, cluster, job, console)
            if work.keeps_run:
                _bring_home(checkpoint, dataset, out, resume or overwrite)
        except BaseException:
            if not (work.keeps_run and work.has(_SNAPSHOT)):
                _remove(work)
            raise
        _remove(work)
    return outcome


def _work_of(cluster: ClusterConfig, out: Path) -> Work:
    """The folder that all workers read: in the storage, or beside the run."""
    if cluster.storage is None:
        return Work(*filesystem_at(out.parent), f".{out.name}.cluster", keeps_run=False)
    return Work(*filesystem_at(cluster.storage), out.name, keeps_run=True)


def _prepare(work: Work, dataset: Dataset, out: Path, resume: bool, overwrite: bool) -> None:
    """Write what the workers read: the dataset, and the run that is continued."""
    from pyarrow.fs import copy_files

    if not work.keeps_run:
        _remove(work)
        with replacing_folder(work.path(DATA)) as new:
            dataset.write_to(new)
        return
    try:
        if work.has(_SNAPSHOT) and not resume:
            if not overwrite:
                raise InputError(
                    f"{work.path()}: holds an unfinished run; continue it with --resume, replace it with --overwrite"
                )
            _remove(work)
        with tempfile.TemporaryDirectory() as scratch:
            dataset.write_to(Path(scratch))
            copy_files(scratch, work.path(DATA), destination_filesystem=work.system)
        if resume and is_run(out) and not work.has(_SNAPSHOT):
            with tempfile.TemporaryDirectory() as scratch:
                shutil.copytree(out, scratch, ignore=lambda _, names: {DATA} & {*names}, dirs_exist_ok=True)
                copy_files(scratch, work.path(RUN), destination_filesystem=work.system)
    except OSError as error:
        raise InputError(
            f"{work.path()}: can't be written ({one_line(error)}); check --storage and the access to it"
        ) from error


def _run(ray: ModuleType, cluster: ClusterConfig, job: Job, console: Console) -> tuple[Outcome, Any]:
    """Start the workers, and show what they say until they end. Returns the outcome, and the last checkpoint (Ray)."""
    import ray.train as train
    from ray.train.torch import TorchConfig, TorchTrainer

    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    board = new_board(ray)
    workers, has_gpus = workers_of(cluster, ray), ray.cluster_resources().get("GPU", 0) > 0
    _check_size(ray, workers, job.threads)
    trainer = TorchTrainer(
        work_on,
        train_loop_config={"job": job, "board": board},
        torch_config=TorchConfig(timeout_s=int(PATIENCE.total_seconds())),
        scaling_config=train.ScalingConfig(
            num_workers=workers, resources_per_worker={"CPU": job.threads}, use_gpu=has_gpus
        ),
        run_config=train.RunConfig(
            name=job.work.name,
            storage_path=job.work.parent,
            storage_filesystem=job.work.system,
            failure_config=train.FailureConfig(max_failures=FAILURES),
            checkpoint_config=train.CheckpointConfig(num_to_keep=2),
        ),
    )
    ended: list[Any] = []

    def fit() -> None:
        try:
            ended.append(_fitted(trainer))
        except Exception as error:  # noqa: BLE001 the other thread raises it
            ended.append(error)
        finally:
            over.set()

    over = threading.Event()  # a Thread that is joined when Ctrl-C comes counts as ended in Python 3.11
    threading.Thread(target=fit, daemon=True).start()  # in the main thread, Ray would end the run at Ctrl-C

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True, markup=False)

    _wait(ray, over, board, say)
    check(board)
    outcome: Outcome | None = ray.get(board.ended.remote())
    if outcome is None:
        raise _explained(ended[0]) from ended[0]
    return outcome, getattr(ended[0], "checkpoint", None)


def _fitted(trainer: Any) -> Any:
    """The result of Ray Train, which itself gives up when the storage of its list of checkpoints fails once."""
    from ray.train import ControllerError

    for _ in range(FAILURES):
        try:
            return trainer.fit()
        except ControllerError as error:
            if not isinstance(error.controller_failure, OSError):
                raise
            reason = error.controller_failure
        except OSError as error:
            reason = error
        warn(f"{FAILS} ({one_line(reason)}); training goes on from the last checkpoint once it can", RunWarning)
        time.sleep(AGAIN)
    return trainer.fit()


def _wait(ray: ModuleType, over: threading.Event, board: Any, say: Any) -> None:
    """Show lines from the board until training has ended. Ctrl-C asks the workers to stop, a second one ends it."""
    asked = False
    while not over.is_set():
        try:
            over.wait(EVERY)
            show(_answer(ray, board.take.remote()), say)
        except KeyboardInterrupt:
            if asked:
                raise
            asked = True
            board.stop.remote()
    show(_answer(ray, board.take.remote()), say)


def _answer(ray: ModuleType, asked: Any) -> Any:
    """What an actor on this machine answers, as it always does unless the head or this node of the cluster died."""
    try:
        return ray.get(asked, timeout=LOST)
    except ray.exceptions.RayError as error:
        raise InputError(
            "the cluster no longer answers, its head or the node of this machine may have died; start it again, "
            "--resume continues from the last checkpoint"
        ) from error


def _check_size(ray: ModuleType, workers: int, threads: int) -> None:
    """Warn if the cluster has too few processors, because Ray then waits for more machines."""
    found, needed = int(ray.cluster_resources().get("CPU", 0)), workers * threads
    if found < needed:
        warn(f"{workers} workers with {threads} threads need {needed} processors, the cluster has {found}; training "
             "starts when it has more", TrainingWarning)  # fmt: skip


def _explained(error: BaseException) -> BaseException:
    """The error for a training that Ray gave up."""
    from ray.exceptions import RayError

    failures = getattr(error, "worker_failures", {})
    for _, failure in sorted(failures.items()):
        if not isinstance(failure, RayError | RuntimeError):
            return failure  # a bug
    last = next(iter(failures.values()), error)
    return InputError(
        f"the cluster gave up training ({one_line(last)}); look at its logs, --resume continues from its checkpoint"
    )


def _bring_home(checkpoint: Any, dataset: Dataset, out: Path, replace: bool) -> None:
    """Copy the finished run from the storage to the run folder."""
    with Place(out) as place:
        place.settle(resume=False, overwrite=replace)
        with place.making() as new:
            checkpoint.to_directory(str(new))
            (new / DATA).mkdir()
            dataset.write_to(new / DATA)
        Run(place.current, place).take_over(unfinished=True)


def _remove(work: Work) -> None:
    """Remove the work folder."""
    if work.has():
        with explained(Path(work.path())):
            work.system.delete_dir(work.path())
