"""Micro-batching: requests that arrive while others are being answered are answered together."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class FullError(Exception):
    """The queue is full; the request may be sent again later."""


class Batcher(Generic[Asked, Answer]):
    """Passes requests to a function in batches, on a thread of its own.

    A request that finds the thread idle is passed on at once. Those that arrive meanwhile wait and are the next batch,
    so batches grow with the load and nobody waits for a timer. Use it from one event loop.

    Args:
        work: function that answers a batch, in its order, with an exception in place of an answer that it can't give.
            An exception that it raises is raised for every request of the batch.
        most: number of requests per batch.
        queue: number of requests that may wait.
        name: name of the thread.
    """

    def __init__(
        self, work: Callable[[list[Asked]], Sequence[Answer | Exception]], most: int, queue: int, name: str
    ) -> None:
        self.work, self.most, self.queue = work, most, queue
        self.waiting = 0  # requests that wait
        self._units: deque[tuple[list[Asked], asyncio.Future[list[Answer | Exception]]]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._running: asyncio.Task[None] | None = None

    async def ask(self, requests: list[Asked]) -> list[Answer | Exception]:
        """The answers to requests that belong together, or their errors; they are never spread over batches.

        Raises:
            FullError: too many requests wait.
        """
        if self.waiting + len(requests) > self.queue and self.waiting:
            raise FullError
        future: asyncio.Future[list[Answer | Exception]] = asyncio.get_running_loop().create_future()
        self._units.append((requests, future))
        self.waiting += len(requests)
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._units:
                units = self._next()
                flat = [request for requests, _ in units for request in requests]
                try:
                    answers = await loop.run_in_executor(self._thread, self.work, flat)
                except Exception as error:  # noqa: BLE001 (passed on to those who wait)
                    for _, future in units:
                        if not future.done():
                            future.set_exception(error)
                    continue
                start = 0
                for requests, future in units:
                    own = answers[start : start + len(requests)]
                    start += len(requests)
                    if not future.done():  # its client may have left
                        future.set_result(list(own))
        finally:
            self._running = None

    def _next(self) -> list[tuple[list[Asked], "asyncio.Future[list[Answer | Exception]]"]]:
        """The units of the next batch: at least one, and no more than ``most`` requests together. Abandoned units are
        dropped.
        """
        units: list[tuple[list[Asked], asyncio.Future[list[Answer | Exception]]]] = []
        size = 0
        while self._units and (not units or size + len(self._units[0][0]) <= self.most):
            requests, future = self._units.popleft()
            self.waiting -= len(requests)
            if not future.done():
                units.append((requests, future))
                size += len(requests)
        return units

    def close(self) -> None:
        """Wait for the batch that is being answered, and end the thread."""
        self._thread.shutdown(wait=True)
