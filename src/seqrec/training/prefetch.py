"""Draws the tasks of the next steps, and copies them to the device, while it computes."""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from seqrec.training.objective import Task

AHEAD = 2  # tasks that wait on the device


@contextmanager
def prefetched(tasks: Iterator[Task], device: torch.device, ahead: int = AHEAD) -> Iterator[Iterator[Task]]:
    """The same tasks in the same order, on the device, drawn by a thread that is up to ``ahead`` tasks ahead.

    On the CPU they are drawn when they are asked for, as the processor has nothing to wait for, and on Apple's GPUs, as
    torch does not say that several threads may use them. On CUDA, the copies
    run in a stream of their own, from pinned memory, and the stream that asks for a task waits for its copy. An
    exception in the thread is raised where the next task is asked for. The thread ends with the context.

    Args:
        tasks: tasks on the CPU, which only the thread draws from now on.
        device: device of the model.
        ahead: number of tasks to draw ahead.
    """
    if device.type in ("cpu", "mps"):
        yield tasks
        return
    thread = _Thread(tasks, device, ahead)
    try:
        yield thread.tasks()
    finally:
        thread.end()


class _Thread:
    """The thread, and the queue between it and the loop: a task and what its copy waits for, or how the tasks ended."""

    def __init__(self, tasks: Iterator[Task], device: torch.device, ahead: int) -> None:
        self._source, self._device = tasks, device
        self._ready: queue.Queue[tuple[Task | None, Any]] = queue.Queue(max(1, ahead))
        self._ended = threading.Event()
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        # A daemon, so that a program that an exception ends here does not wait for it.
        self._thread = threading.Thread(target=self._draw, name="seqrec-tasks", daemon=True)
        self._thread.start()

    def _draw(self) -> None:
        try:
            with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
                for task in self._source:
                    moved = task.to(self._device)
                    copied = None if self._stream is None else self._stream.record_event()
                    if not self._put((moved, copied)):
                        return
            self._put((None, None))
        except BaseException as error:  # noqa: BLE001 (whatever it is, the loop must hear of it)
            self._put((None, error))

    def _put(self, entry: tuple[Task | None, Any]) -> bool:
        """Wait for room in the queue. Returns whether there was any before the loop ended."""
        while not self._ended.is_set():
            try:
                self._ready.put(entry, timeout=0.05)
            except queue.Full:
                continue
            return True
        return False

    def tasks(self) -> Iterator[Task]:
        """The tasks, each of them usable in the current stream."""
        while not self._ended.is_set():
            task, how = self._ready.get()
            if task is None:
                if how is not None:
                    raise how
                return
            if self._stream is not None:
                stream = torch.cuda.current_stream(self._device)
                stream.wait_event(how)
                # Their memory must not be reused by a later copy before this stream has read them.
                _each_tensor(task, lambda x, stream=stream: x.record_stream(stream))  # type: ignore[misc]
            yield task

    def end(self) -> None:
        """End the thread, and wait for it."""
        self._ended.set()
        self._thread.join()


def _each_tensor(part: Any, function: Callable[[Tensor], Any]) -> None:
    """Call a function with each tensor of a task that is on the device."""
    if isinstance(part, Tensor):
        if part.device.type != "cpu":
            function(part)
    elif isinstance(part, (tuple, list)):
        for one in part:
            _each_tensor(one, function)
    elif isinstance(part, dict):
        _each_tensor(list(part.values()), function)
    elif hasattr(part, "__dict__"):
        _each_tensor(vars(part), function)
