"""``seqrec bench``: how fast this machine trains, ranks and recommends, and how that scales."""

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl
import torch
from rich.console import Console
from rich.table import Table

from seqrec import kernels
from seqrec.data.dataset import Dataset
from seqrec.data.formats.read import read_log
from seqrec.data.prepare import prepare
from seqrec.data.split import Histories, Split, all_histories, split_last_two
from seqrec.files import make_folder, replacing
from seqrec.models.base import Loss
from seqrec.models.sasrec import SASRec, SASRecConfig
from seqrec.ranking.protocols import evaluate
from seqrec.ranking.topk import best
from seqrec.recommender import Recommender
from seqrec.tools.config import BenchConfig
from seqrec.tools.steps import BATCH_SIZE, PHASES, generated, matmul_rate, seconds_of, time_steps
from seqrec.training.checks import check_trainable
from seqrec.training.config import TrainConfig
from seqrec.training.objective import Objective

BCE, SOFTMAX, FULL = (
    Objective("bce", 1, 0.0, 0.0),
    Objective("sampled-softmax", None, 0.0, 0.0),
    Objective("cross-entropy", None, 0.0, 0.0),
)
MEASURED: tuple[Loss, ...] = ("bce", "sampled-softmax", "gbce", "cross-entropy")  # losses whose memory is measured


def peak_memory(users: int, items: int, dim: int, loss: Loss) -> dict[str, float]:
    """Peak memory of training, measured in a separate process, and the size of the item table, in bytes."""
    arguments = json.dumps({"users": users, "items": items, "dim": dim, "loss": loss})
    script = f"from seqrec.tools.bench import _trained_alone; _trained_alone({arguments!r})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"training in a separate process failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _trained_alone(arguments: str) -> None:
    """Train one epoch in this process, which does nothing else, and print how much memory that took."""
    values = json.loads(arguments)
    torch.set_num_threads(1)
    config = TrainConfig(
        epochs=1,
        batch_size=BATCH_SIZE,
        ensemble=1,
        item_init="random",
        evaluate_every=0,
        loss=values["loss"],
        device="cpu",
    )
    # A small training first, so that memory that libraries allocate once does not count.
    _train_in_a_folder(generated(1000, 1000, 9, 0), values["dim"], config)
    before = _peak_bytes()
    _train_in_a_folder(generated(values["users"], values["items"], 9, 0), values["dim"], config)
    print(json.dumps({"peak": _peak_bytes() - before, "table": 4 * (values["items"] + 1) * values["dim"]}))


def _train_in_a_folder(dataset: Dataset, dim: int, config: TrainConfig) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Recommender("sasrec", embedding_dim=dim, **vars(config)).fit(dataset, Path(folder) / "run")


def _peak_bytes() -> int:
    status = Path("/proc/self/status")
    if status.exists():  # getrusage may return the peak of the parent process
        return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    import resource  # not available on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def measured(
    log: Path | None = None, config: BenchConfig | None = None, console: Console | None = None
) -> dict[str, Any]:
    """Run all measurements.

    Args:
        log: log for the main figures. By default a generated one.
        config: sizes of the benchmark.
        console: console that shows what is being measured.

    Returns:
        The results by name, in seconds and bytes.
    """
    config = config or BenchConfig()

    def tell(what: str) -> None:
        if console is not None:
            console.print(f"{what} …", highlight=False)

    if log is not None:
        dataset = prepare(read_log(log))
    else:
        size = (600, 500) if config.quick else (config.users, config.items)
        dataset = generated(*size, config.mean_length, config.seed)
    split = split_last_two(dataset)
    check_trainable(split, TrainConfig(loss="bce"), SASRec)
    sizes = SASRecConfig(embedding_dim=config.embedding_dim, max_length=config.max_length, dropout=0.2)
    found: dict[str, Any] = {"machine": machine(), "log": log.name if log else "generated",
                             "users": dataset.num_users, "items": dataset.num_items,
                             "interactions": dataset.num_interactions, "embedding_dim": config.embedding_dim,
                             "max_length": config.max_length}  # fmt: skip
    tell("steps of training")
    found["steps"] = [_step_and_limit(split.train, sizes, objective, config) for objective in (BCE, SOFTMAX, FULL)]
    tell("growth with width, length, users and catalogue")
    found["growth"] = _growth(split.train, sizes, config)
    tell("memory")
    found["memory"] = [
        {"size": items, "loss": loss, **peak_memory(2000, items, config.embedding_dim, loss)}
        for items in config.sizes_of_catalogues
        for loss in MEASURED[: 1 if config.quick else None]
        if loss != "cross-entropy" or items <= 100_000
    ]
    tell("ranking and recommending")
    found["users_per_second"] = _ranking(split, sizes, config)
    found["rows_per_second"] = _reading(20_000 if config.quick else 1_000_000)
    return found


def _step_and_limit(
    histories: Histories, sizes: SASRecConfig, objective: Objective, config: BenchConfig
) -> dict[str, Any]:
    """The time of a training step, and the share of it that its matrix products alone would take."""
    step = time_steps(histories, sizes, objective, config.steps, config.seed)
    rate = matmul_rate(step["tokens"], config.embedding_dim)
    share = {way: step["flops"] / each / step["seconds"] for way, each in rate.items()}
    return {"loss": objective.loss, **step, "rate": rate, "share": share}


def _growth(histories: Histories, sizes: SASRecConfig, config: BenchConfig) -> dict[str, list[dict[str, Any]]]:
    """The time of a step for increasing widths, lengths, numbers of users and catalogue sizes."""
    widths, lengths = ((16, 32), (10, 20)) if config.quick else ((32, 64, 128, 256), (10, 50, 100, 200))
    long = generated(500 if config.quick else 4000, max(histories.dataset.num_items, 1000), 150, config.seed)
    growth: dict[str, list[dict[str, Any]]] = {}
    growth["embedding_dim"] = [
        {"size": dim, **time_steps(histories, replace(sizes, embedding_dim=dim), BCE, config.steps)} for dim in widths
    ]
    growth["max_length"] = [
        {"size": length, **time_steps(all_histories(long), replace(sizes, max_length=length), BCE, config.steps // 2)}
        for length in lengths
    ]
    growth["users"] = [
        {"size": users, **time_steps(all_histories(generated(users, 10_000, 9, 0)), sizes, BCE, config.steps)}
        for users in ((500, 2000) if config.quick else (10_000, 100_000, 1_000_000))
    ]
    for objective in (BCE, SOFTMAX):
        growth[f"catalogue, {objective.loss}"] = [
            {"size": items, **time_steps(all_histories(generated(config.users, items, 9, 0)), sizes, objective,
                                       config.steps)}
            for items in config.sizes_of_catalogues
        ]  # fmt: skip
    return growth


def _ranking(split: Split, sizes: SASRecConfig, config: BenchConfig) -> dict[str, float]:
    """Users per second for evaluation and recommendation."""
    dataset = split.train.dataset
    torch.manual_seed(config.seed)
    model = SASRec(sizes, dataset.num_items)
    counts = split.train.item_counts()
    work: dict[str, tuple[int, Callable[[], Any]]] = {
        "evaluate full": (len(split.test), lambda: evaluate(model, split.test, train_counts=counts)),
        "evaluate sampled": (
            len(split.test),
            lambda: evaluate(model, split.test, train_counts=counts, protocol="sampled"),
        ),
        "recommend 10": (dataset.num_users, lambda: best(model, all_histories(dataset), 10)),
    }
    repeats = 1 if config.quick else 3
    return {name: users / median(seconds_of(one) for _ in range(repeats)) for name, (users, one) in work.items()}


def _reading(rows: int) -> float:
    """Rows per second for turning a CSV file into a saved dataset."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.csv"
        many = generated(rows // 9, 50_000, 9, 1)
        users = np.repeat(np.arange(many.num_users), np.diff(many.offsets))
        pl.DataFrame({"user_id": users, "item_id": many.items, "timestamp": many.timestamps}).write_csv(path)
        return len(users) / seconds_of(lambda: prepare(read_log(path)).save(Path(folder) / "dataset"))


def machine() -> dict[str, Any]:
    """The machine and the versions of the software that were measured."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "compiled loops": kernels.library() is not None,
    }


def tables(found: dict[str, Any]) -> list[Table]:
    """The results of ``bench`` as tables."""
    kind = found["machine"]
    threads = f"{kind['threads']} thread{'s' * (kind['threads'] != 1)} of {kind['cores']} cores"
    steps = Table(title=f"a step of {BATCH_SIZE} users, {threads}, milliseconds")
    for name in ("loss", "all", "draw", "forward", "backward", "adam", "tokens/s"):
        steps.add_column(name, justify="left" if name == "loss" else "right")
    limit = Table(title="the same arithmetic as matrix products alone")
    for name in ("loss", "products of", "GFLOP/s", "ms", "of the step"):
        limit.add_column(name, justify="left" if name in ("loss", "products of") else "right")
    for row in found["steps"]:
        cells = [f"{1000 * row[name]:.2f}" for name in ("seconds", *PHASES)]
        steps.add_row(row["loss"], *cells, f"{row['tokens_per_second']:,.0f}")
        for way, rate in row["rate"].items():
            share = row["share"][way]
            limit.add_row(row["loss"], way, f"{rate / 1e9:.0f}", f"{1e3 * row['flops'] / rate:.2f}", f"{share:.0%}")
    growth = Table(title="growth of a step")
    for name in ("with", "size", "ms", "tokens", "µs per token"):
        growth.add_column(name, justify="left" if name == "with" else "right")
    for name, rows in found["growth"].items():
        for row in rows:
            token = 1e6 * row["seconds"] / row["tokens"]
            growth.add_row(
                name, f"{row['size']:,}", f"{1000 * row['seconds']:.2f}", f"{row['tokens']:,}", f"{token:.1f}"
            )
    memory = Table(title="memory of training")
    for name in ("items", "loss", "peak MB", "times the table"):
        memory.add_column(name, justify="left" if name == "loss" else "right")
    for row in found["memory"]:
        memory.add_row(
            f"{row['size']:,}", row["loss"], f"{row['peak'] / 1e6:,.0f}", f"{row['peak'] / row['table']:.1f}"
        )
    rates = Table(title="other rates")
    rates.add_column("work")
    rates.add_column("per second", justify="right")
    for name, rate in found["users_per_second"].items():
        rates.add_row(f"users, {name}", f"{rate:,.0f}")
    rates.add_row("rows of CSV to a saved dataset", f"{found['rows_per_second']:,.0f}")
    return [steps, limit, growth, memory, rates]


def write(found: dict[str, Any], folder: Path) -> None:
    """Write ``bench.json`` and ``bench.png``, each completely or not at all."""
    from seqrec.report.pictures import growth_picture  # imports matplotlib

    make_folder(folder)
    with replacing(folder / "bench.json") as new:
        new.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    curves = {
        name: [(row["size"], 1e6 * row["seconds"] / row["tokens"]) for row in rows]
        for name, rows in found["growth"].items()
    }
    growth_picture(curves, "microseconds per token", folder / "bench.png")
