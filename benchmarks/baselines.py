"""Time of the models that only count in a full evaluation, beside SASRec.

    python benchmarks/baselines.py --interactions 5000000 --items 1000000

The log is that of counts.py, with times. The output is the processor time of an evaluation of 2,000 users by each
model, the least of some rounds in which the models take turns, and a checksum of all metrics; then, with
``--together``, what one evaluation of SASRec with all baselines takes, and the highest memory.
"""

import argparse
import json
import time
import zlib

import numpy as np
import torch
from counts import fastest, memory, synthetic

from seqrec import SASRec, SASRecConfig, evaluate
from seqrec.data.split import split_last_two
from seqrec.ranking.baselines import counted_baselines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--interactions", type=int, default=5_000_000)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--together", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    split = split_last_two(synthetic(np.random.default_rng(0), options.interactions, options.items, dated=True))
    users = np.sort(np.random.default_rng(1).permutation(len(split.test))[: options.users])
    targets, counts = split.test.take(users), split.train.item_counts()
    start, used = time.perf_counter(), time.process_time()
    baselines = counted_baselines(split.train)
    print(f"counting: {time.process_time() - used:.1f} s of processor time, {time.perf_counter() - start:.1f} s")
    model = SASRec(SASRecConfig(), options.items)
    sums = {}

    def evaluated(name: str, one: torch.nn.Module) -> None:
        found = evaluate(one, targets, train_counts=counts)
        sums[name] = zlib.crc32(json.dumps([found.metrics, found.intervals]).encode())

    ways = {"sasrec": model, **baselines}
    found = fastest(
        {name: lambda name=name, one=one: evaluated(name, one) for name, one in ways.items()}, options.rounds
    )
    for name, seconds in found.items():
        print(f"{name}: {seconds:.3f} s of processor time, checksum {sums[name]:08x}")
    if options.together:
        start, used = time.perf_counter(), time.process_time()
        evaluate(model, targets, train_counts=counts, baselines=baselines)
        clock, used = time.perf_counter() - start, time.process_time() - used
        print(f"all together: {used:.1f} s of processor time, {clock:.1f} s; at most {memory():.2f} GB")


if __name__ == "__main__":
    main()
