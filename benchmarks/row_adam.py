"""The same training with three optimizers: does RowAdam learn like dense Adam?

    python benchmarks/row_adam.py games.txt --epochs 6

seqrec's RowAdam, torch's dense Adam and torch's SparseAdam see the same batches, negatives and dropout. The output is
the loss and the NDCG@10 of the validation items (full ranking) after each epoch.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seqrec import SASRec, SASRecConfig, prepare, read_log, split_last_two
from seqrec.data.batches import Epoch
from seqrec.data.draws import Draws
from seqrec.data.negatives import UniformSampler
from seqrec.models.blocks import dropouts_of, seed_dropout
from seqrec.ranking import metrics
from seqrec.ranking.protocols import ranks
from seqrec.training.losses import sampled_softmax
from seqrec.training.optim import RowAdam


class Torch:
    """Torch's optimizers: one for the item table, dense Adam for the rest."""

    def __init__(self, model: SASRec, rate: float, sparse: bool) -> None:
        table = [model.item_embedding.weight]
        rest = [p for p in model.parameters() if p is not table[0]]
        kind = torch.optim.SparseAdam if sparse else torch.optim.Adam
        self.parts: list[Any] = [kind(table, lr=rate), torch.optim.Adam(rest, lr=rate)]

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def catch_up(self) -> None:
        """Do nothing: these optimizers leave no rows behind."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("log", type=Path)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--learning-rate", type=float, default=0.001)
    parser.add_argument("--negatives", type=int, default=1024)
    options = parser.parse_args()
    dataset = prepare(read_log(options.log))
    split = split_last_two(dataset)
    sampler = UniformSampler(dataset.num_items)
    for name in ("RowAdam", "dense Adam", "SparseAdam"):
        torch.manual_seed(0)
        model = SASRec(SASRecConfig(dropout=0.3), dataset.num_items)
        model.item_embedding.sparse = name != "dense Adam"
        if name == "RowAdam":
            optimizer: Any = RowAdam(model, options.learning_rate)
        else:
            optimizer = Torch(model, options.learning_rate, sparse=name == "SparseAdam")
        for epoch in range(options.epochs):
            start, total, count = time.perf_counter(), 0.0, 0
            model.train()
            batches = Epoch(split.train, batch_size=128, max_length=50, seed=0, epoch=epoch)
            for step, batch in enumerate(batches):
                seed_dropout(dropouts_of(model), Draws([0, epoch, step]))
                drawn = sampler.draw_distinct(np.random.default_rng([0, epoch, step]), options.negatives)
                hidden = model.encode(batch)
                target = model.score(hidden, batch.targets[:, None])[:, 0]
                loss = sampled_softmax(target, model.score(hidden, torch.from_numpy(drawn)))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total, count = total + loss.item(), count + 1
            seconds = time.perf_counter() - start
            optimizer.catch_up()
            greater, ties = ranks(model, split.valid)
            row = {"optimizer": name, "epoch": epoch + 1, "loss": round(total / count, 4),
                   "ndcg@10": round(float(metrics.ndcg(greater, ties, 10).mean()), 4),
                   "seconds": round(seconds, 1)}  # fmt: skip
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
