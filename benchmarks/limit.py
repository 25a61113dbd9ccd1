"""The time of a training step as a multiple of the time that only its matrix products would take.

    python benchmarks/limit.py games.txt --dims 64,100,128 --threads 1,2

The model is SASRec with 2 blocks, histories of 50 items and 128 users per step. The step and the products are timed
alternately. The output is the median multiple, against torch's products and, if compiled, against seqrec's own.
"""

import argparse
import json
from pathlib import Path
from statistics import median

import torch

from seqrec import SASRecConfig, prepare, read_log, split_last_two
from seqrec.tools.steps import matmul_rate, time_steps
from seqrec.training.objective import Objective


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("log", type=Path)
    parser.add_argument("--dims", default="64,100,128")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--losses", default="bce,sampled-softmax")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    train = split_last_two(prepare(read_log(arguments.log))).train
    for threads in map(int, arguments.threads.split(",")):
        torch.set_num_threads(threads)
        for loss in arguments.losses.split(","):
            objective = Objective(loss, 1 if loss == "bce" else None, 0.0, 0.0)
            for dim in map(int, arguments.dims.split(",")):
                multiples: dict[str, list[float]] = {}
                milliseconds = []
                for _ in range(arguments.repeats):
                    step = time_steps(train, SASRecConfig(embedding_dim=dim), objective, arguments.steps)
                    milliseconds.append(1e3 * step["seconds"])
                    for products, rate in matmul_rate(step["tokens"], dim).items():
                        multiples.setdefault(products, []).append(step["seconds"] * rate / step["flops"])
                found = {f"times_{products}": round(median(times), 2) for products, times in multiples.items()}
                line = {"threads": threads, "loss": loss, "dim": dim, "ms": round(median(milliseconds), 2)}
                print(json.dumps(line | found), flush=True)


if __name__ == "__main__":
    main()
