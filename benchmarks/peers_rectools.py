"""Times RecTools' SASRecModel: the peer side of `make bench-peers`.

Run it with the interpreter of an environment of its own; it imports nothing of seqrec:

    python3.11 -m venv .venv-rectools
    .venv-rectools/bin/pip install -c constraints.txt torch numpy 'rectools[torch]' 'pytorch-lightning<2.6'
    .venv-rectools/bin/python benchmarks/peers_rectools.py --log games.txt --epochs-timed 2 --json out.json

One JSON object a line goes to stdout as things happen; `--json` gets the whole result at the end. With
`--pace` the script prints {"ready": ...} before every epoch and every recommend and waits for a line on
stdin, so that a driver can take turns with another package and the two never run at the same time.
"""

import argparse
import json
import logging
import math
import os
import platform
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

LOSSES = ("BCE", "gBCE", "softmax", "sampled_softmax")


def say(**event: Any) -> None:
    print(json.dumps(event), flush=True)


class Clock:
    """Wall seconds, and CPU seconds of all threads: far below wall x threads tells of a busy machine."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        return {"seconds": time.perf_counter() - self.wall, "cpu_seconds": time.process_time() - self.cpu}


class Pace:
    """Asks the driver for the next turn, and remembers how long it had to wait."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.waited = 0.0

    def turn(self, what: str, number: int) -> None:
        if not self.enabled:
            return
        start = time.perf_counter()
        say(ready=what, number=number)
        if not sys.stdin.readline():
            raise SystemExit("peers_rectools: stdin closed while waiting for a turn")
        self.waited += time.perf_counter() - start


def read_log(path: Path) -> "tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]":
    """'user item' lines in time order → training rows, histories for the test, test rows.

    Leave-last-two-out: users with three items or more give their last item to the test and the one
    before to validation; shorter histories train whole. The history for the test has the validation item.
    """
    import pandas as pd

    log = pd.read_csv(path, sep=r"\s+", header=None, names=["user_id", "item_id"])
    log["weight"] = 1.0
    # RecTools wants times; the log has only an order.
    log["datetime"] = pd.to_datetime(log.index.to_numpy(), unit="s")
    by_user = log.groupby("user_id")["item_id"]
    from_end = by_user.cumcount(ascending=False)
    short = by_user.transform("size") < 3
    return log[short | (from_end >= 2)], log[short | (from_end >= 1)], log[~short & (from_end == 0)]


def hits(recommended: "pd.DataFrame", test: "pd.DataFrame") -> dict[str, float]:
    """HR@10 and NDCG@10 over all test users: a user without recommendations is a miss."""
    ranks = test.merge(recommended, on=["user_id", "item_id"])["rank"]
    return {
        "hr@10": len(ranks) / len(test),
        "ndcg@10": sum(1 / math.log2(1 + rank) for rank in ranks) / len(test),
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    import pytorch_lightning as pl
    import torch
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel
    from rectools.models.nn.item_net import IdEmbeddingsItemNet

    torch.set_num_threads(args.threads)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*were considered cold.*")
    pl.seed_everything(args.seed, verbose=False)

    train, history, test = read_log(args.log)
    train_set, history_set = Dataset.construct(train), Dataset.construct(history)

    pace = Pace(args.pace)
    epochs: list[dict[str, Any]] = []
    clock = Clock()

    # Plain functions: the model deep-copies its trainer, which would copy a callback's lists too.
    def epoch_start(trainer: Any, module: Any) -> None:
        nonlocal clock
        pace.turn("epoch", len(epochs) + 1)
        clock = Clock()

    def epoch_end(trainer: Any, module: Any) -> None:
        times = clock.read()
        loss = float(trainer.callback_metrics["train_loss"])
        epochs.append({"epoch": len(epochs) + 1, **times, "loss": loss})
        say(**epochs[-1])

    def trainer() -> pl.Trainer:
        timer = pl.callbacks.LambdaCallback(on_train_epoch_start=epoch_start, on_train_epoch_end=epoch_end)
        return pl.Trainer(
            accelerator="cpu",
            devices=1,
            min_epochs=args.epochs_timed,
            max_epochs=args.epochs_timed,
            limit_train_batches=args.steps,
            callbacks=[timer],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    model = SASRecModel(
        n_blocks=args.blocks,
        n_heads=args.heads,
        n_factors=args.dimension,
        dropout_rate=args.dropout,
        session_max_len=args.max_length,
        train_min_user_interactions=2,
        loss=args.loss,
        n_negatives=args.negatives,
        lr=args.learning_rate,
        batch_size=args.batch_size,
        dataloader_num_workers=0,
        recommend_batch_size=args.recommend_batch_size,
        recommend_torch_device="cpu",
        item_net_block_types=(IdEmbeddingsItemNet,),
        get_trainer_func=trainer,
    )
    fit_clock = Clock()
    model.fit(train_set)
    fit_seconds = fit_clock.read()["seconds"] - pace.waited

    users = test["user_id"].to_numpy()
    recommends: list[dict[str, Any]] = []
    recommended = None
    for repeat in range(1, args.recommend_repeats + 1):
        pace.turn("recommend", repeat)
        recommend_clock = Clock()
        recommended = model.recommend(users, history_set, k=10, filter_viewed=True, on_unsupported_targets="ignore")
        recommends.append({"recommend": repeat, **recommend_clock.read()})
        say(**recommends[-1])

    trained = model.data_preparator.train_dataset
    result = {
        "package": "rectools",
        "versions": {
            "python": platform.python_version(),
            "rectools": version("rectools"),
            "torch": torch.__version__,
            "pytorch-lightning": version("pytorch-lightning"),
            "numpy": version("numpy"),
        },
        "settings": {key: value for key, value in vars(args).items() if key not in ("log", "json", "pace")},
        "log": args.log.name,
        "users": int(history["user_id"].nunique()),
        "train_sequences": trained.user_id_map.size,
        "train_targets": len(trained.interactions.df) - trained.user_id_map.size,
        "catalogue": trained.item_id_map.size - model.data_preparator.n_item_extra_tokens,
        "parameters": sum(weights.numel() for weights in model.torch_model.parameters()),
        "epochs": epochs,
        "epoch_seconds": [epoch["seconds"] for epoch in epochs],
        "fit_seconds": fit_seconds,
        "recommends": recommends,
        "recommend_seconds": [recommend["seconds"] for recommend in recommends],
        "test_users": len(test),
    }
    if recommended is not None:
        result["recommended_users"] = int(recommended["user_id"].nunique())
        result["metrics"] = hits(recommended, test)
    return result


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time RecTools' SASRecModel: epochs and recommendations.")
    parser.add_argument("--log", type=Path, required=True, help="'user item' lines in time order")
    parser.add_argument("--json", type=Path, required=True, help="where the result goes")
    parser.add_argument("--epochs-timed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=None, help="steps of an epoch that are taken; all without it")
    parser.add_argument("--recommend-repeats", type=int, default=1)
    parser.add_argument("--recommend-batch-size", type=int, default=256)
    parser.add_argument("--max-length", type=int, default=50)
    parser.add_argument("--dimension", type=int, default=100)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--heads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--loss", choices=LOSSES, default="BCE")
    parser.add_argument("--negatives", type=int, default=1)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--learning-rate", type=float, default=0.001)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pace", action="store_true", help="wait for a line on stdin before each timed step")
    return parser.parse_args()


def main() -> None:
    args = parse()
    # Thread pools read these when they load, so the heavy imports come after.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(args.threads)
    result = measure(args)
    args.json.write_text(json.dumps(result, indent=2) + "\n")
    say(done=str(args.json))


if __name__ == "__main__":
    main()
