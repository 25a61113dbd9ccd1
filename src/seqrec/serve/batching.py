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
    so batches grow with the load and nobody waits for a timer. Requests whose client has given up are dropped. Use it
    from one event loop.

    Args:
        work: function that answers a batch, in its order, with an exception in place of an answer that it can't give.
            An exception that it raises is raised for every request of the batch.
        most: cost of a batch, unless a single request costs more.
        queue: number of requests that may wait.
        name: name of the thread.
        cost: what a request costs. Costly ones make batches shorter, so that others don't wait for long.
    """

    def __init__(
        self,
        work: Callable[[list[Asked]], Sequence[Answer | Exception]],
        most: int,
        queue: int,
        name: str,
        cost: Callable[[Asked], int] = lambda _: 1,
    ) -> None:
        self.work, self.most, self.queue, self.cost = work, most, queue, cost
        self._waiting: deque[tuple[Asked, int, asyncio.Future[Answer | Exception]]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._running: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Number of requests that wait."""
        return len(self._waiting)

    async def ask(self, requests: Sequence[Asked]) -> list[Answer | Exception]:
        """The answers to some requests, or their errors. They may be spread over several batches.

        Raises:
            FullError: too many requests wait.
        """
        if self._waiting and len(self._waiting) + len(requests) > self.queue:
            raise FullError
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Answer | Exception]] = [loop.create_future() for _ in requests]
        self._waiting.extend(
            (request, self.cost(request), future) for request, future in zip(requests, futures, strict=True)
        )
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        if len(futures) == 1:  # the most frequent case, and gather takes a while
            return [await futures[0]]
        return list(await asyncio.gather(*futures))

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while batch := self._next():
                try:
                    answers = await loop.run_in_executor(self._thread, self.work, [request for request, _ in batch])
                except Exception as error:  # noqa: BLE001 (passed on to those who wait)
                    for _, future in batch:
                        if not future.done():
                            future.set_exception(error)
                    continue
                for (_, future), answer in zip(batch, answers, strict=True):
                    if not future.done():
                        future.set_result(answer)
        finally:
            self._running = None

    def _next(self) -> list[tuple[Asked, "asyncio.Future[Answer | Exception]"]]:
        """The next batch: at least one request, and no more than ``most`` cost together; empty if none waits."""
        batch: list[tuple[Asked, asyncio.Future[Answer | Exception]]] = []
        total = 0
        while self._waiting and (not batch or total + self._waiting[0][1] <= self.most):
            request, cost, future = self._waiting.popleft()
            if not future.done():  # otherwise its client has given up
                batch.append((request, future))
                total += cost
        return batch

    def close(self) -> None:
        """Drop what waits, wait for the batch that is being answered, and end the thread."""
        self._waiting.clear()
        self._thread.shutdown(wait=True)
