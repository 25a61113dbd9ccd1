"""Times RecTools' SASRecModel: one of the peers of `make bench-peers`.

Run it with the Python of its own environment; it does not import seqrec:

    python3.11 -m venv .venv-rectools
    .venv-rectools/bin/pip install -c constraints.txt torch numpy 'rectools[torch]' 'pytorch-lightning<2.6'
    .venv-rectools/bin/python benchmarks/peers_rectools.py --log games.txt --repeats 2 --json out.json

The script prints one JSON object per line on stdout for each event, and writes the complete result to `--json` at the
end. With `--pace` it prints {"ready": ...} before every epoch and every recommend, and waits for a line on stdin, so
that a driver can alternate between packages and no two run at the same time.
"""

import argparse
import logging
import warnings
from typing import TYPE_CHECKING, Any

from peers_common import Turns, hits, read_log, run, split

if TYPE_CHECKING:
    import pandas as pd

LOSSES = ("BCE", "gBCE", "softmax", "sampled_softmax")


def read(args: argparse.Namespace) -> "tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]":
    """Training rows, histories for the test, and test rows, with the columns that RecTools needs."""
    import pandas as pd

    log = read_log(args.log)
    log["weight"] = 1.0
    # RecTools needs times, but the log has only an order.
    log["datetime"] = pd.to_datetime(log.index.to_numpy(), unit="s")
    return split(log)


def measure(args: argparse.Namespace, turns: Turns) -> dict[str, Any]:
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

    train, history, test = read(args)
    train_set, history_set = Dataset.construct(train), Dataset.construct(history)

    # Functions, because the model deep-copies its trainer, which would also copy the lists of a callback object.
    def epoch_start(trainer: Any, module: Any) -> None:
        turns.start("epoch")

    def epoch_end(trainer: Any, module: Any) -> None:
        turns.end("epoch", loss=float(trainer.callback_metrics["train_loss"]))

    def trainer() -> pl.Trainer:
        timer = pl.callbacks.LambdaCallback(on_train_epoch_start=epoch_start, on_train_epoch_end=epoch_end)
        return pl.Trainer(
            accelerator="cpu",
            devices=1,
            min_epochs=args.repeats,
            max_epochs=args.repeats,
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
    model.fit(train_set)

    users = test["user_id"].to_numpy()
    recommended = None
    for _ in range(0 if args.epochs_only else args.repeats):
        with turns.turn("recommend"):
            recommended = model.recommend(users, history_set, k=10, filter_viewed=True, on_unsupported_targets="ignore")

    trained = model.data_preparator.train_dataset
    sequences = trained.user_id_map.size
    epoch_steps = -(-sequences // args.batch_size)
    result = {
        "users": int(history["user_id"].nunique()),
        "train_sequences": sequences,
        "train_targets": len(trained.interactions.df) - sequences,
        "train_positions": sequences * args.max_length,
        "epoch_steps": epoch_steps,
        "steps": min(args.steps or epoch_steps, epoch_steps),
        "catalogue": trained.item_id_map.size - model.data_preparator.n_item_extra_tokens,
        "parameters": sum(weights.numel() for weights in model.torch_model.parameters()),
        "test_users": len(test),
    }
    if recommended is not None:
        result["recommended_users"] = int(recommended["user_id"].nunique())
        result["metrics"] = hits(recommended, test)
    return result


if __name__ == "__main__":
    run("rectools", LOSSES, ("rectools", "torch", "pytorch-lightning", "numpy"), {"train": measure})
