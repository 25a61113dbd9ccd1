"""Swaps a run under load: python benchmarks/swap.py RUN OTHER [--requests 100000] [--swaps 20].

A server has a copy of RUN. While eight connections ask for recommendations after one history, the copy is replaced by
OTHER and by RUN in turn, by two renames as `seqrec fit --overwrite` does it. Every answer must be, byte for byte, that
of one of the two runs with its version.
"""

import argparse
import shutil
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from serve import post, server, talk

from seqrec.data.dataset import Dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    originals = [options.run, options.other]
    ids = [set(Dataset.load(run / "data").item_ids.to_list()) for run in originals]
    request = post("/v1/recommend", {"history": sorted(ids[0] & ids[1])[:20], "k": 10})
    answers: Counter[bytes] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "live"
        shutil.copytree(originals[0], run)
        options.run, options.serve = run, ["--watch-seconds", "0.2"]
        with server(options, Path(folder)) as (port, _):
            done = threading.Event()
            swapping = threading.Thread(target=swap, args=(run, originals, options.swaps, done))
            swapping.start()
            began = time.perf_counter()
            sent = 0
            while sent < options.requests or swapping.is_alive():
                sent += talk(port, 8, 1.0, lambda _: request, lambda body: answers.update([body]))
            took = time.perf_counter() - began
            done.set()
            swapping.join()
    for body, count in answers.items():
        print(count, body[-150:])
    print(f"{sent:,} requests in {took:.0f} s, {options.swaps} swaps, {len(answers)} different answers (2 are right)")
    if len(answers) != 2:
        raise SystemExit("answers of two models were mixed, or no swap took place")


def swap(run: Path, originals: list[Path], swaps: int, done: threading.Event) -> None:
    for number in range(swaps):
        copy, old = run.with_name("copy"), run.with_name("old")
        shutil.copytree(originals[(number + 1) % 2], copy)
        run.rename(old)
        copy.rename(run)
        shutil.rmtree(old)
        if done.wait(3):
            return


if __name__ == "__main__":
    main()
