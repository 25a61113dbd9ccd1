"""Micro-batching: what waits together is answered together, in order, and the queue is bounded."""

import asyncio
import threading
from typing import Any

import pytest

from seqrec.serve.batching import Batcher, FullError


class Work:
    """Doubles numbers, when it is allowed to."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.allowed = threading.Event()

    def __call__(self, batch: list[int]) -> list[int | Exception]:
        self.batches.append(batch)
        assert self.allowed.wait(10)
        if 13 in batch:
            raise RuntimeError("unlucky")
        return [ValueError(str(one)) if one < 0 else 2 * one for one in batch]


def with_work(talk: Any, most: int = 4, queue: int = 8) -> Work:
    async def main() -> None:
        batcher: Batcher[int, int] = Batcher(work, most, queue, "test")
        await talk(batcher, work)
        batcher.close()

    work = Work()
    asyncio.run(asyncio.wait_for(main(), 20))
    return work


async def first_is_running(work: Work) -> None:
    while not work.batches:
        await asyncio.sleep(0.001)


def test_requests_that_wait_are_answered_together() -> None:
    async def talk(batcher: Batcher[int, int], work: Work) -> None:
        tasks = [asyncio.create_task(batcher.ask([0]))]
        await first_is_running(work)
        tasks += [asyncio.create_task(batcher.ask([number])) for number in range(1, 8)]
        await asyncio.sleep(0)
        assert batcher.waiting == 7
        work.allowed.set()
        assert await asyncio.gather(*tasks) == [[2 * number] for number in range(8)]
        assert batcher.waiting == 0

    assert with_work(talk).batches == [[0], [1, 2, 3, 4], [5, 6, 7]]


def test_costly_requests_make_shorter_batches() -> None:
    async def talk(batcher: Batcher[int, int], work: Work) -> None:
        batcher.cost = lambda number: 3 if number >= 10 else 1
        tasks = [asyncio.create_task(batcher.ask([0]))]
        await first_is_running(work)
        tasks += [asyncio.create_task(batcher.ask([number])) for number in (1, 10, 11, 12, 2)]
        await asyncio.sleep(0)
        work.allowed.set()
        assert await asyncio.gather(*tasks) == [[0], [2], [20], [22], [24], [4]]

    assert with_work(talk).batches == [[0], [1, 10], [11], [12, 2]]


def test_many_requests_of_one_client_let_others_in_between() -> None:
    async def talk(batcher: Batcher[int, int], work: Work) -> None:
        work.allowed.set()
        assert await batcher.ask(list(range(20, 40))) == [2 * number for number in range(20, 40)]

    assert [len(batch) for batch in with_work(talk).batches] == [4] * 5


def test_a_full_queue_refuses_at_once() -> None:
    async def talk(batcher: Batcher[int, int], work: Work) -> None:
        tasks = [asyncio.create_task(batcher.ask([0]))]
        await first_is_running(work)
        tasks += [asyncio.create_task(batcher.ask([number])) for number in range(8)]
        await asyncio.sleep(0)
        with pytest.raises(FullError):
            await batcher.ask([9])
        work.allowed.set()
        await asyncio.gather(*tasks)
        assert await batcher.ask([9]) == [18]

    with_work(talk)


def test_errors_reach_those_they_belong_to() -> None:
    async def talk(batcher: Batcher[int, int], work: Work) -> None:
        tasks = [asyncio.create_task(batcher.ask([0]))]
        await first_is_running(work)
        tasks += [asyncio.create_task(batcher.ask([number])) for number in (1, -1, 13)]
        await asyncio.sleep(0)
        work.allowed.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert answers[0] == [0]
        assert [str(answer) for answer in answers[1:]] == ["unlucky"] * 3
        (bad, good) = await batcher.ask([-1, 5])
        assert isinstance(bad, ValueError)
        assert good == 10

    with_work(talk)


def test_who_leaves_is_forgotten() -> None:
    async def talk(batcher: Batcher[int, int], work: Work) -> None:
        running = asyncio.create_task(batcher.ask([0]))
        await first_is_running(work)
        gone, stays = asyncio.create_task(batcher.ask([1])), asyncio.create_task(batcher.ask([2]))
        await asyncio.sleep(0)
        gone.cancel()
        running.cancel()
        await asyncio.sleep(0)
        work.allowed.set()
        assert await stays == [4]
        assert batcher.waiting == 0

    assert with_work(talk).batches == [[0], [2]]
