"""Times seqrec's SASRec beside the peers of `make bench-peers`, with the same jobs, turns and output.

    python benchmarks/peers_seqrec.py --log games.txt --repeats 3 --json out.json
    python benchmarks/peers_seqrec.py --log games.txt --job rank --vectors vectors --json out.json
    python benchmarks/peers_seqrec.py --log log.csv --job read --json out.json

Training and ranking are those of a single SASRec without transition counts, which the peers do not have. The job
`rank` first trains for ten epochs, and writes the vectors that it and the peers rank.
"""

import argparse
import tempfile
import time
from typing import Any

from peers_common import Turns, Vectors, run

LOSSES = ("bce", "sampled-softmax", "cross-entropy")
EPOCHS = 10  # before vectors are ranked


def options(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "loss": args.loss, "negatives": None if args.loss == "cross-entropy" else args.negatives, "epochs": 1,
        "evaluate_every": 0, "batch_size": args.batch_size, "learning_rate": args.learning_rate, "seed": args.seed,
        "max_length": args.max_length, "windows": "last", "ensemble": 1, "item_init": "random", "transitions": "off",
        "embedding_dim": args.dimension, "num_blocks": args.blocks, "num_heads": args.heads, "dropout": args.dropout,
        "device": "cpu", "split": "last-two",
    }  # fmt: skip


def train(args: argparse.Namespace, turns: Turns) -> dict[str, Any]:
    import numpy as np
    import torch

    from seqrec import Recommender, prepare, read_log, split_last_two
    from seqrec.data.batches import trainable

    torch.set_num_threads(args.threads)
    dataset = prepare(read_log(args.log))
    recommender = Recommender("sasrec", **options(args))
    for _ in range(args.repeats):
        epoch(recommender, dataset, turns)
    for _ in range(0 if args.epochs_only else args.repeats):
        with turns.turn("recommend"):
            recommender.recommend(k=10)
    trained = trainable(split_last_two(dataset).train)
    # There is no padding, so every computed position is a target.
    targets = int(np.minimum(trained.lengths - 1, args.max_length).sum())
    steps = -(-len(trained) // args.batch_size)
    return {
        "epoch_steps": steps, "steps": steps, "train_sequences": len(trained), "train_targets": targets,
        "train_positions": targets, "catalogue": dataset.num_items, "recommended_users": dataset.num_users,
    }  # fmt: skip


def epoch(recommender: Any, dataset: Any, turns: Turns) -> None:
    """Train an epoch from fresh weights, timed from its first step to its last, without preparation and saving."""
    clock: list[float] = []

    def after_step() -> bool:
        clock.append(time.process_time())
        return False

    turns.start("epoch")
    recommender.fit(dataset, stop=after_step)
    # The first step is not between two readings of the clock, so the others stand for it.
    cpu_seconds = (clock[-1] - clock[0]) * len(clock) / max(1, len(clock) - 1)
    row = recommender.epochs[0]
    turns.end("epoch", seconds=float(row["seconds"]), cpu_seconds=cpu_seconds, loss=float(row["loss"]))


def rank(args: argparse.Namespace, turns: Turns) -> dict[str, Any]:
    import numpy as np
    import torch

    from seqrec import Recommender, prepare, read_log
    from seqrec.data.split import all_histories
    from seqrec.ranking import scoring

    torch.set_num_threads(args.threads)
    dataset = prepare(read_log(args.log))
    model = Recommender("sasrec", **options(args) | {"epochs": EPOCHS}).fit(dataset).model
    with scoring.evaluation_mode(model):
        catalogue = scoring.Catalogue(model)
        histories = all_histories(dataset)
        states = scoring.last_states(model, histories)
        # Column 0 is the padding; the peers get only real items.
        users = np.repeat(np.arange(len(histories)), histories.lengths)
        pairs = np.unique(users * catalogue.columns + dataset.items)
        seen = pairs // catalogue.columns, pairs % catalogue.columns
        offsets = np.searchsorted(seen[0], np.arange(len(histories) + 1))
        given = Vectors(args.vectors, catalogue.vectors[1:].numpy(), states.numpy(), offsets, seen[1] - 1)
        given.save()

        def found(left_out: Any = None) -> np.ndarray:
            return scoring.rank(catalogue, states, 10, left_out=left_out).columns - 1

        return given.rank(args, turns, found, lambda: found(seen))


def read(args: argparse.Namespace, turns: Turns) -> dict[str, Any]:
    import torch

    from seqrec import prepare, read_log

    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        with turns.turn("read"):
            dataset = prepare(read_log(args.log))
            dataset.save(f"{folder}/data")
        return {"users": dataset.num_users, "items": dataset.num_items, "rows": dataset.num_interactions}


if __name__ == "__main__":
    run("seqrec", LOSSES, ("seqrec", "torch", "numpy"), {"train": train, "rank": rank, "read": read})
