"""Times RePlay's SasRec, and its preparation of a log: one of the peers of `make bench-peers`.

Run it with the Python of its own environment; it does not import seqrec:

    python3.11 -m venv .venv-replay
    .venv-replay/bin/pip install -c constraints.txt torch numpy 'replay-rec[torch]==0.22.*' 'lightning<2.6' \\
        'pytorch-lightning<2.6'
    .venv-replay/bin/python benchmarks/peers_replay.py --log games.txt --bucket 32 --repeats 2 --json out.json
    .venv-replay/bin/python benchmarks/peers_replay.py --log log.csv --job read --json out.json

This is `replay.nn.sequential.SasRec` on a `ParquetModule`, the way that its documentation recommends; the
`SequenceTokenizer` of older examples is deprecated. Batches are padded. With ``--bucket`` its
`LengthBucketedQueryEncoder` runs the transformer on that many histories of similar length at a time; embeddings, final
norm and loss are still those of the padded batch. RePlay draws negatives that all positions share; for BCE, where
seqrec has one negative per position, so has this script. Its Adam is dense, with its own betas.
"""

import argparse
import logging
import tempfile
import warnings
from typing import TYPE_CHECKING, Any

from peers_common import Turns, hits, read_log, run, split

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

LOSSES = ("BCESampled", "CESampled", "CE")


def sequences(events: "pl.DataFrame", encoder: Any) -> "pl.DataFrame":
    """One row per user with the encoded items in time order."""
    from replay.data.nn.utils import groupby_sequences

    return groupby_sequences(encoder.transform(events), "user_id", "timestamp")


def label_encoder() -> Any:
    from replay.preprocessing import LabelEncoder, LabelEncodingRule

    return LabelEncoder([LabelEncodingRule("user_id"), LabelEncodingRule("item_id")])


def read(args: argparse.Namespace, turns: Turns) -> dict[str, Any]:
    """From a log with user_id, item_id and timestamp to the files that a ParquetModule reads, and the ids."""
    import polars as pl
    import replay.data.nn.utils  # noqa: F401 - so that the clock does not time the import

    encoder = label_encoder()
    with tempfile.TemporaryDirectory() as folder:
        with turns.turn("read"):
            events = pl.read_parquet(args.log) if args.log.suffix == ".parquet" else pl.read_csv(args.log)
            encoder.fit(events)
            found = sequences(events, encoder)
            found.write_parquet(f"{folder}/sequences.parquet")
            encoder.save(f"{folder}/encoder")
        return {"users": len(found), "items": len(encoder.mapping["item_id"]), "rows": len(events)}


def train(args: argparse.Namespace, turns: Turns) -> dict[str, Any]:
    import lightning
    import polars as pl
    import torch

    torch.set_num_threads(args.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning|replay|pyarrow")
    warnings.filterwarnings("ignore", message=".*dataset paths aren't provided")
    lightning.seed_everything(args.seed, verbose=False)
    log = read_log(args.log)
    # RePlay needs times, but the log has only an order.
    log["timestamp"] = range(len(log))
    *parts, test = split(log)
    parts = [pl.from_pandas(part) for part in parts]
    encoder = label_encoder().fit(pl.from_pandas(log))
    with tempfile.TemporaryDirectory() as folder:
        trained, history = (sequences(part, encoder).select("user_id", "item_id") for part in parts)
        trained = trained.filter(pl.col("item_id").list.len() > 1)
        history = history.with_columns(seen_ids="item_id")
        trained.write_parquet(f"{folder}/train.parquet")
        history.write_parquet(f"{folder}/predict.parquet")
        recommended, model, computed = fit_and_predict(args, turns, folder, encoder, history)
    kept = trained.select(pl.col("item_id").list.len().sub(1).clip(upper_bound=args.max_length)).to_series()
    epoch_steps = -(-len(trained) // args.batch_size)
    steps = min(args.steps or epoch_steps, epoch_steps)
    result = {
        "train_sequences": len(trained),
        "train_targets": int(kept.sum()),
        "train_positions": round(computed / args.repeats * epoch_steps / steps),
        "epoch_steps": epoch_steps,
        "steps": steps,
        "catalogue": len(encoder.mapping["item_id"]),
        "parameters": sum(weights.numel() for weights in model.parameters()),
    }
    if recommended is not None:
        result["recommended_users"] = int(recommended["user_id"].nunique())
        result["metrics"] = hits(recommended, test)
    return result


def fit_and_predict(
    args: argparse.Namespace, turns: Turns, folder: str, encoder: Any, history: "pl.DataFrame"
) -> "tuple[pd.DataFrame | None, Any, int]":
    """Train and recommend, in turns.

    Returns the recommendations with the ids of the log, if any, the model, and how many positions its transformer
    computed in training.
    """
    import lightning
    from lightning.pytorch.callbacks import LambdaCallback
    from replay.nn.lightning import LightningModule
    from replay.nn.lightning.callback import PandasTopItemsCallback
    from replay.nn.lightning.optimizer import OptimizerFactory
    from replay.nn.lightning.postprocessor import SeenItemsFilter

    quiet: dict[str, Any] = {
        "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    items = len(encoder.mapping["item_id"])
    computed = 0

    def count(layer: Any, _: Any, hidden: Any) -> None:
        nonlocal computed
        computed += hidden.shape[:2].numel() if layer.training else 0

    model = sasrec(args, items)
    encoder_of(model).register_forward_hook(count)
    module = LightningModule(model, OptimizerFactory(learning_rate=args.learning_rate))
    data = data_module(args, folder, items, longest=int(history["seen_ids"].list.len().max()))
    timer = LambdaCallback(
        on_train_epoch_start=lambda *_: turns.start("epoch"),
        on_train_epoch_end=lambda trainer, _: turns.end("epoch", loss=float(trainer.callback_metrics["train_loss"])),
    )
    lightning.Trainer(
        **quiet, max_epochs=args.repeats, limit_train_batches=args.steps, limit_val_batches=0, callbacks=[timer]
    ).fit(module, data)
    best = PandasTopItemsCallback(10, "user_id", "item_id", postprocessors=[SeenItemsFilter(items)])
    predictor = lightning.Trainer(**quiet, callbacks=[best])
    found = None
    for _ in range(0 if args.epochs_only else args.repeats):
        with turns.turn("recommend"):
            predictor.predict(module, data, return_predictions=False)
            found = best.get_result().explode(["item_id", "rating"]).astype({"item_id": "int64"})
            found = encoder.inverse_transform(found)
            found["rank"] = found.groupby("user_id").cumcount() + 1
    return found, model, computed


def schema(args: argparse.Namespace, items: int) -> Any:
    from replay.data import FeatureHint, FeatureSource, FeatureType
    from replay.data.nn import TensorFeatureInfo, TensorFeatureSource, TensorSchema

    source = TensorFeatureSource(FeatureSource.INTERACTIONS, "item_id")
    return TensorSchema(
        [
            TensorFeatureInfo(
                "item_id",
                FeatureType.CATEGORICAL,
                is_seq=True,
                feature_hint=FeatureHint.ITEM_ID,
                feature_sources=[source],
                cardinality=items,
                padding_value=items,
                embedding_dim=args.dimension,
            )
        ]
    )


def sasrec(args: argparse.Namespace, items: int) -> Any:
    from replay.nn import loss
    from replay.nn.sequential import LengthBucketedQueryEncoder, SasRec

    model = SasRec.from_params(
        schema(args, items),
        embedding_dim=args.dimension,
        num_heads=args.heads,
        num_blocks=args.blocks,
        max_sequence_length=args.max_length,
        dropout=args.dropout,
    )
    if args.bucket is not None:
        model.body.encoder = LengthBucketedQueryEncoder(model.body.encoder, args.bucket)
    return SasRec(model.body, getattr(loss, args.loss)(**({"ignore_index": items} if args.loss == "CE" else {})))


def encoder_of(model: Any) -> Any:
    """The transformer, in buckets or not."""
    return getattr(model.body.encoder, "encoder", model.body.encoder)


def data_module(args: argparse.Namespace, folder: str, items: int, longest: int) -> Any:
    import torch
    from replay.data.nn import ParquetModule
    from replay.nn.transform import AdaptiveTrimTransform, GroupTransform, RenameTransform
    from replay.nn.transform import UniformNegativeSamplingTransform as Shared
    from replay.nn.transform.template import make_default_sasrec_transforms

    class OnePerPosition(torch.nn.Module):
        """Negatives for each position, which RePlay's losses accept, but its transforms do not draw."""

        def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            shape = (*batch["positive_labels"].shape[:2], args.negatives)
            return {**batch, "negative_labels": torch.randint(items, shape)}

    transforms = {"train": make_default_sasrec_transforms(schema(args, items))["train"]}
    if args.loss != "CE":
        transforms["train"].append(OnePerPosition() if args.loss == "BCESampled" else Shared(items, args.negatives))
    transforms["predict"] = [
        RenameTransform({"item_id_mask": "padding_mask"}),
        AdaptiveTrimTransform("item_id"),
        GroupTransform({"feature_tensors": ["item_id"]}),
    ]
    user = {"user_id": {}}
    return ParquetModule(
        # One more item than the model sees, because the last one is only a target.
        metadata={
            "train": user | {"item_id": {"shape": args.max_length + 1, "padding": items}},
            "predict": user
            | {
                "item_id": {"shape": args.max_length, "padding": items},
                "seen_ids": {"shape": longest, "padding": -1},
            },
        },
        batch_size={"train": args.batch_size, "predict": args.recommend_batch_size},
        transforms=transforms,
        train_path=f"{folder}/train.parquet",
        predict_path=f"{folder}/predict.parquet",
    )


if __name__ == "__main__":
    run("replay", LOSSES, ("replay-rec", "torch", "lightning", "polars", "numpy"), {"train": train, "read": read})
