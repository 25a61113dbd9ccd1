"""The state of a server: its runs, its events, and the threads that use them."""

import asyncio
import logging
from typing import Any

from seqrec.serve.answering import recommend
from seqrec.serve.batching import Batcher
from seqrec.serve.config import ServeConfig
from seqrec.serve.live import Lives, Runs
from seqrec.serve.measures import Measures
from seqrec.serve.schemas import Recommend
from seqrec.serve.store import Event, EventStore

AT_ONCE = 64  # requests ranked together
COSTLY, EXPLAINED = 8, 32  # what a request with filters of its own costs, and one with reasons
MOST_TOGETHER = 100  # items; more take time of their own
_Asked = tuple[Lives, Recommend]
log = logging.getLogger("seqrec.serve")


class Server:
    """Runs, events, and the two threads that rank and record.

    Args:
        runs: the runs to serve.
        store: recorded events.
        config: options of the server.
        measures: where batches and fallbacks are counted.
    """

    def __init__(self, runs: Runs, store: EventStore, config: ServeConfig, measures: Measures) -> None:
        self.runs, self.store, self.config, self.measures = runs, store, config, measures
        self.ranking: Batcher[_Asked, dict[str, Any]] = Batcher(
            self._rank, AT_ONCE, config.queue, "seqrec-rank", lambda asked: _cost(asked[1])
        )
        # The events of a request are one transaction, so they are never spread over batches.
        self.recording: Batcher[list[Event], list[bool]] = Batcher(
            self._record, 10 * AT_ONCE, config.queue, "seqrec-record", len
        )
        self.draining = False

    def _rank(self, asked: list[_Asked]) -> list[dict[str, Any] | Exception]:
        self.measures.batch.observe(len(asked))
        found: dict[int, dict[str, Any] | Exception] = {}
        for lives in dict.fromkeys(lives for lives, _ in asked):  # one, unless a run was replaced meanwhile
            rows = [row for row, one in enumerate(asked) if one[0] is lives]
            found.update(zip(rows, recommend(lives, self.store, [asked[row][1] for row in rows]), strict=True))
        return [found[row] for row in range(len(asked))]

    def _record(self, groups: list[list[Event]]) -> list[list[bool]]:
        added = iter(self.store.add([event for events in groups for event in events]))
        return [[next(added) for _ in events] for events in groups]

    async def recommend(self, requests: list[Recommend]) -> list[dict[str, Any] | Exception]:
        """Rank several requests, together with others that arrive."""
        self.measures.queue.set(self.ranking.waiting)
        lives = self.runs.current  # once, so that no answer and no batch is of two models
        answers = await self.ranking.ask([(lives, request) for request in requests])
        for answer in answers:
            if isinstance(answer, dict) and answer["used"]["ranked_by"] == "popularity":
                self.measures.fallbacks.inc()
        return answers

    async def watch(self) -> None:
        """Look at the run folders now and then, and replace a run whose folder has changed."""
        while self.config.watch_seconds:
            await asyncio.sleep(self.config.watch_seconds)
            try:
                await asyncio.to_thread(self.runs.reload, True)
            except Exception:
                log.exception("a bug in seqrec")  # the next look may find a folder that can be read

    def close(self) -> None:
        """Wait for the work in progress, and close the store."""
        self.ranking.close()
        self.recording.close()
        self.store.close()


def _cost(request: Recommend) -> int:
    """What a request costs beside one that is ranked together with others."""
    if request.explain:
        return EXPLAINED
    alone = request.allow is not None or request.deny or request.category is not None
    return COSTLY if alone or request.k > MOST_TOGETHER else 1
