"""Does a model that reads times use them? Trains it on a log with real times and with shuffled times.

    python benchmarks/shuffled_times.py ml-100k.inter --model tisasrec --seeds 5 --set time_span=2048

By default each user's intervals are shuffled. The items keep their order, so the model loses only the information that
times add to it. ``--what times`` exchanges times between the items of a training history, which also destroys the
order; the held-out items stay the same. For each seed, one model is trained with real times and one with shuffled
times. The NDCG@10 of each test user (full ranking) is averaged over seeds and compared in pairs.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from seqrec import Dataset, Recommender, prepare, read_log, split_last_two
from seqrec.ranking import metrics, statistics
from seqrec.ranking.protocols import ranks


def with_shuffled_times(dataset: Dataset, what: str, seed: int) -> Dataset:
    """The same interactions, with each user's intervals or the times of the training items permuted."""
    random = np.random.default_rng(seed)
    items, times = dataset.items.copy(), dataset.timestamps.copy()
    for low, high in zip(dataset.offsets[:-1], dataset.offsets[1:], strict=True):
        if what == "intervals":
            times[low + 1 : high] = times[low] + np.cumsum(random.permutation(np.diff(times[low:high])))
        else:  # permuting the items has the same effect as permuting their times
            items[low : high - 2] = random.permutation(items[low : high - 2])
    return replace(dataset, items=items, timestamps=times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("log", type=Path)
    parser.add_argument("--model", default="tisasrec")
    parser.add_argument("--what", choices=["intervals", "times"], default="intervals")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="options of Recommender")
    options = parser.parse_args()
    settings: dict[str, Any] = {}
    for setting in options.set:
        name, _, value = setting.partition("=")
        settings[name] = json.loads(value) if value[:1] in "0123456789.-[ntf" else value

    dataset = prepare(read_log(options.log))
    rows: list[np.ndarray] = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        pair = []
        for kind, log in (("real", dataset), ("shuffled", with_shuffled_times(dataset, options.what, seed))):
            recommender = Recommender(options.model, seed=seed, split="last-two", **settings).fit(log)
            values = metrics.ndcg(*ranks(recommender.model, split_last_two(log).test), 10)
            pair.append(values)
            print(f"seed {seed} {kind:8} NDCG@10 {values.mean():.4f}  ({recommender.summary})", flush=True)
        rows.append(pair[0] - pair[1])
    gain = np.mean(rows, axis=0)
    low, high = statistics.difference_intervals(gain[:, None])[0]
    p = statistics.paired_t_test(gain[:, None])[0]
    print(
        f"{options.model} {' '.join(options.set)}: real minus shuffled {options.what} {gain.mean():+.4f} "
        f"({low:+.4f} to {high:+.4f}), p {p:.2g} over {len(gain)} users, {options.seeds} seeds; by seed "
        f"{', '.join(f'{row.mean():+.4f}' for row in rows)}"
    )


if __name__ == "__main__":
    main()
