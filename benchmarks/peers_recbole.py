"""Times RecBole's SASRec: one of the peers of `make bench-peers`.

Run it with the Python of its own environment; it does not import seqrec:

    python3.11 -m venv .venv-recbole
    .venv-recbole/bin/pip install -c constraints.txt torch 'numpy<2' 'pandas<3' 'setuptools<81' recbole
    .venv-recbole/bin/python benchmarks/peers_recbole.py --log games.txt --steps 300 --json out.json

Its output is like that of peers_rectools.py. RecBole has no binary cross-entropy for SASRec; its pairwise loss, BPR, is
the nearest. It trains one target per sequence: a history of n items becomes n - 1 sequences. Each is a prefix of the
history, padded to the full length, and only its last position is scored. So an epoch has about as many targets as in
the other packages, but a separate sequence for each target. RecBole's split, leave-one-out for validation and test,
differs for users with three items: it trains on their second item.
"""

import argparse
import contextlib
import itertools
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peers_common import Turns, hits, read_log, run, split

if TYPE_CHECKING:
    import pandas as pd

LOSSES = ("BPR", "CE")


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """RecBole's configuration: its defaults, except for sizes and settings that only cost time."""
    return {
        "data_path": ".",
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        # Times only order the log. Unless unused, they and their prefixes would be copied into every batch.
        "unused_col": {"inter": ["timestamp", "timestamp_list"]},
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
        "MAX_ITEM_LIST_LENGTH": args.max_length,
        "hidden_size": args.dimension,
        # The width of the embedding and ReLU, as in the paper. RecBole's defaults are 256 and a slower GELU.
        "inner_size": args.dimension,
        "hidden_act": "relu",
        "n_layers": args.blocks,
        "n_heads": args.heads,
        "hidden_dropout_prob": args.dropout,
        "attn_dropout_prob": args.dropout,
        "loss_type": args.loss,
        # RecBole refuses a sampler together with the loss over the whole catalogue.
        "train_neg_sample_args": (
            {"distribution": "uniform", "sample_num": args.negatives} if args.loss == "BPR" else None
        ),
        "learning_rate": args.learning_rate,
        "train_batch_size": args.batch_size,
        "eval_batch_size": args.recommend_batch_size,
        "epochs": args.repeats,
        "seed": args.seed,
        "gpu_id": "",
        "show_progress": False,
    }


def write_log(log: "pd.DataFrame", folder: Path) -> None:
    """Write RecBole's atomic file. The position in the history serves as time, because RecBole's times have 32 bits."""
    columns = {"user_id": "user_id:token", "item_id": "item_id:token", "timestamp": "timestamp:float"}
    log = log.assign(timestamp=log.groupby("user_id").cumcount()).rename(columns=columns)
    folder.mkdir()
    log.to_csv(folder / f"{folder.name}.inter", sep="\t", index=False)


def paced(turns: Turns, steps: int | None) -> type:
    """RecBole's trainer, with a timed turn for each epoch, limited to ``steps`` steps."""
    from recbole.trainer import Trainer

    class Paced(Trainer):
        def _train_epoch(self, train_data: Any, *args: Any, **options: Any) -> Any:
            turns.start("epoch")
            batches = train_data if steps is None else itertools.islice(train_data, steps)
            loss = super()._train_epoch(batches, *args, **options)
            turns.end("epoch", loss=loss / min(steps or len(train_data), len(train_data)))
            return loss

    return Paced


class Recommending:
    """Recommends ten items for every test user, with the scores of RecBole's full evaluation."""

    def __init__(self, dataset: Any, test_data: Any, history: "pd.DataFrame") -> None:
        import numpy as np
        from scipy.sparse import csr_matrix

        self.dataset, self.test_data = dataset, test_data
        users = dataset.token2id("user_id", history["user_id"].astype(str).to_numpy())
        items = dataset.token2id("item_id", history["item_id"].astype(str).to_numpy())
        shape = (dataset.user_num, dataset.item_num)
        # For sequential models RecBole ranks seen items too. Here they are removed, as in the other packages.
        self.seen = csr_matrix((np.ones(len(users), dtype=bool), (users, items)), shape=shape)

    def frame(self, model: Any) -> "pd.DataFrame":
        """A frame of ``user_id``, ``item_id`` and ``rank``."""
        import numpy as np
        import pandas as pd

        parts = list(self.parts(model))
        users, items = (np.concatenate(part) for part in zip(*parts, strict=True))
        return pd.DataFrame(
            {
                "user_id": np.repeat(self.dataset.id2token("user_id", users), 10).astype(np.int64),
                "item_id": self.dataset.id2token("item_id", items).ravel().astype(np.int64),
                "rank": np.tile(np.arange(1, 11), len(users)),
            }
        )

    def parts(self, model: Any) -> Iterator[tuple[Any, Any]]:
        """Yield users and their ten items, batch by batch."""
        import torch

        model.eval()
        with torch.no_grad():
            for interaction, *_ in self.test_data:
                scores = model.full_sort_predict(interaction)
                users = interaction["user_id"].numpy()
                scores[:, 0] = -torch.inf
                scores[self.seen[users].nonzero()] = -torch.inf
                yield users, scores.topk(10).indices.numpy()


def measure(args: argparse.Namespace, turns: Turns) -> dict[str, Any]:
    log = read_log(args.log)
    args.json = args.json.resolve()
    # RecBole writes its checkpoints and its TensorBoard log into the working folder.
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        write_log(log, Path("log"))
        return train_and_recommend(args, turns, log)


def train_and_recommend(args: argparse.Namespace, turns: Turns, log: "pd.DataFrame") -> dict[str, Any]:
    import torch

    # RecBole would parse this script's command line as its own.
    sys.argv = sys.argv[:1]
    warnings.filterwarnings("ignore", category=FutureWarning)
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.model.sequential_recommender import SASRec
    from recbole.utils import init_seed

    # RecBole imports all its models, and one of them, SINE, turns on autograd's anomaly detection for all of them.
    # With it every step takes 1.6 to 1.8 times as long. This benchmark measures without it.
    torch.autograd.set_detect_anomaly(False)
    torch.set_num_threads(args.threads)
    config = Config(model="SASRec", dataset="log", config_dict=settings(args))
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    train_data, _, test_data = data_preparation(config, dataset)
    model = SASRec(config, train_data._dataset)
    trainer = paced(turns, args.steps)(config, model)
    trainer.fit(train_data, saved=False, verbose=False)

    _, history, test = split(log)
    recommending = Recommending(dataset, test_data, history)
    recommended = None
    for _ in range(0 if args.epochs_only else args.repeats):
        with turns.turn("recommend"):
            recommended = recommending.frame(model)

    sequences = len(train_data._dataset)
    result = {
        "users": dataset.user_num - 1,
        "train_sequences": sequences,
        "train_targets": sequences,
        "train_positions": sequences * args.max_length,
        "epoch_steps": len(train_data),
        "steps": min(args.steps or len(train_data), len(train_data)),
        "catalogue": dataset.item_num - 1,
        "parameters": sum(weights.numel() for weights in model.parameters()),
        "test_users": len(test),
    }
    if recommended is not None:
        result["recommended_users"] = int(recommended["user_id"].nunique())
        result["metrics"] = hits(recommended, test)
    return result


if __name__ == "__main__":
    run("recbole", LOSSES, ("recbole", "torch", "numpy", "pandas"), {"train": measure})
