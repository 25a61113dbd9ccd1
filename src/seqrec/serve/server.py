"""The state of a server: its runs, its events, and the threads that use them."""

import asyncio
import logging
from typing import Any

from seqrec.serve.answering import recommend
from seqrec.serve.batching import Batcher
from seqrec.serve.config import ServeConfig
from seqrec.serve.live import Runs
from seqrec.serve.measures import Measures
from seqrec.serve.schemas import Recommend
from seqrec.serve.store import Event, EventStore

AT_ONCE = 64  # requests ranked together
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
        self.ranking: Batcher[Recommend, dict[str, Any]] = Batcher(self._rank, AT_ONCE, config.queue, "seqrec-rank")
        self.recording: Batcher[Event, bool] = Batcher(self.store.add, 10 * AT_ONCE, 10 * config.queue, "seqrec-record")
        self.draining = False

    def _rank(self, requests: list[Recommend]) -> list[dict[str, Any] | Exception]:
        self.measures.batch.observe(len(requests))
        return recommend(self.runs, self.store, requests)

    async def recommend(self, requests: list[Recommend]) -> list[dict[str, Any] | Exception]:
        """Rank several requests, together with others that arrive."""
        self.measures.queue.set(self.ranking.waiting)
        answers = await self.ranking.ask(requests)
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
