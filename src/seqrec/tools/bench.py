"""How fast this machine trains, ranks and recommends, and how that grows: ``seqrec bench``."""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from seqrec import kernels
from seqrec.data.batches import training_batches
from seqrec.data.dataset import Dataset
from seqrec.data.formats.read import read_log
from seqrec.data.prepare import prepare
from seqrec.data.split import Histories, all_histories, split_last_two
from seqrec.files import make_folder, replacing
from seqrec.models.base import Loss
from seqrec.models.blocks import dropouts_of, seed_dropout
from seqrec.models.sasrec import SASRec, SASRecConfig
from seqrec.ranking.protocols import evaluate
from seqrec.ranking.topk import best
from seqrec.recommender import Recommender
from seqrec.tools.config import BenchConfig
from seqrec.training.checks import check_trainable
from seqrec.training.config import TrainConfig, default_negatives
from seqrec.training.objective import Objective, draw_task, mark_tables, training_loss
from seqrec.training.optim import RowAdam

PHASES = ("draw", "forward", "backward", "optimizer")
BATCH_SIZE = 128
MEASURED: tuple[Loss, ...] = ("bce", "sampled-softmax", "gbce", "cross-entropy")  # whose memory is


def generated(users: int, items: int, mean_length: int, seed: int) -> Dataset:
    """A log of the shape that shops have: geometric lengths from 3, items by Zipf's law; it has nothing to learn."""
    random = np.random.default_rng(seed)
    lengths = 2 + random.geometric(1 / max(mean_length - 2, 1), users)
    # A uniform number to the third power falls on the first items most.
    drawn = (items * random.random(int(lengths.sum())) ** 3).astype(np.int32) + 1
    return Dataset(
        items=drawn,
        timestamps=np.arange(len(drawn), dtype=np.int64),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        user_ids=pl.int_range(users, eager=True),
        item_ids=pl.int_range(items, eager=True),
        has_timestamps=False,
    )


def matmul_rate(tokens: int, dim: int) -> dict[str, float]:
    """Floating-point operations a second of the products of one linear layer, forward and both of the way back.

    Of torch's products, and of ours where they are compiled: a machine can do what the faster ones do.
    """
    x, weight, out = torch.randn(tokens, dim), torch.randn(dim, dim), torch.randn(tokens, dim)
    ways = {"torch": torch.mm} | ({"seqrec": kernels.product} if kernels.usable(x) else {})

    def products(mm: Callable[[Tensor, Tensor], Tensor]) -> None:
        for _ in range(20):
            mm(x, weight)
            mm(out.T, x)
            mm(out, weight.T)

    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(9):  # in turn, the first of each not counted
        for way, mm in ways.items():
            taken[way].append(_seconds(partial(products, mm)))
    return {way: 20 * 6 * tokens * dim * dim / median(seconds[1:]) for way, seconds in taken.items()}


def arithmetic(config: SASRecConfig, tokens: int, pairs: int, candidates: int) -> float:
    """Floating-point operations of one step, forward and backward: linear layers, attention, scores."""
    dim = config.embedding_dim
    linear = config.num_blocks * (3 + 2) * dim * dim * tokens
    attention = config.num_blocks * 2 * dim * pairs
    return 2.0 * 3 * (linear + attention + candidates * dim * tokens)


def time_steps(
    histories: Histories, config: SASRecConfig, objective: Objective, steps: int, seed: int = 0
) -> dict[str, Any]:
    """Seconds of a step of training by phase (medians), and what it computes."""
    torch.manual_seed(seed)
    num_items = histories.dataset.num_items
    model = SASRec(config, num_items).train()
    mark_tables(model)
    optimizer = RowAdam(model, 0.001, betas=(0.9, 0.98))
    dropouts, sampler, cpu = dropouts_of(model), objective.sampler(histories), torch.device("cpu")
    batches = [
        *islice(
            training_batches(histories, batch_size=BATCH_SIZE, max_length=config.max_length, seed=seed, epoch=0), 64
        )
    ]
    taken: dict[str, list[float]] = {phase: [] for phase in PHASES}
    tokens: list[int] = []
    pairs: list[int] = []
    for step, batch in enumerate(islice(cycle(batches), steps + 3)):
        clock = [time.perf_counter()]
        random = np.random.default_rng([seed, step])
        task = draw_task(model, batch, histories.take(batch.users.numpy()), objective, sampler, random)
        seed_dropout(dropouts, [seed, step])
        clock.append(time.perf_counter())
        loss = training_loss(model, model.encode, task, objective, cpu)
        clock.append(time.perf_counter())
        optimizer.zero_grad()
        loss.backward()
        clock.append(time.perf_counter())
        optimizer.step()
        clock.append(time.perf_counter())
        if step >= 3:
            for phase, begin, end in zip(PHASES, clock, clock[1:], strict=False):
                taken[phase].append(end - begin)
            tokens.append(len(batch.items))
            pairs.append(int((batch.lengths * (batch.lengths + 1) // 2).sum()))
    drawn = objective.negatives or default_negatives(objective.loss)
    count = num_items if objective.loss == "cross-entropy" else 1 + drawn
    whole = [sum(parts) for parts in zip(*taken.values(), strict=True)]
    flops = arithmetic(config, int(median(tokens)), int(median(pairs)), count)
    return {
        "seconds": median(whole),
        "tokens": int(median(tokens)),
        "tokens_per_second": sum(tokens) / sum(whole),
        "flops": flops,
        **{phase: median(values) for phase, values in taken.items()},
    }


def peak_memory(users: int, items: int, dim: int, loss: Loss) -> dict[str, float]:
    """Bytes that training adds to a process of its own, at most, and the bytes of the item table."""
    arguments = json.dumps({"users": users, "items": items, "dim": dim, "loss": loss})
    script = f"from seqrec.tools.bench import _trained_alone; _trained_alone({arguments!r})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"training in a process of its own failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _trained_alone(arguments: str) -> None:
    """Train an epoch and print how much memory that took; in a process that does nothing else."""
    values = json.loads(arguments)
    torch.set_num_threads(1)
    config = TrainConfig(epochs=1, evaluate_every=0, loss=values["loss"], device="cpu")
    # What the libraries take once is not training's.
    _train_in_a_folder(generated(1000, 1000, 9, 0), values["dim"], config)
    before = _peak_bytes()
    _train_in_a_folder(generated(values["users"], values["items"], 9, 0), values["dim"], config)
    print(json.dumps({"peak": _peak_bytes() - before, "table": 4 * (values["items"] + 1) * values["dim"]}))


def _train_in_a_folder(dataset: Dataset, dim: int, config: TrainConfig) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Recommender("sasrec", embedding_dim=dim, **vars(config)).fit(dataset, Path(folder) / "run")


def _peak_bytes() -> int:
    status = Path("/proc/self/status")
    if status.exists():  # of this program alone; what getrusage says may be the parent's
        return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    import resource  # which Windows does not have

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def bench(log: Path | None = None, config: BenchConfig | None = None, console: Console | None = None) -> dict[str, Any]:
    """Measure all of it; everything by name, seconds and bytes.

    Args:
        log: a log to use in the place of the generated one.
        config: what is measured.
        console: is told what is being measured.
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
    train = split.train
    check_trainable(split, TrainConfig(loss="bce"), SASRec)
    sizes = SASRecConfig(embedding_dim=config.embedding_dim, max_length=config.max_length, dropout=0.2)
    softmax, bce = Objective("sampled-softmax", None, 0.0, 0.0), Objective("bce", 1, 0.0, 0.0)
    found: dict[str, Any] = {"machine": machine(), "log": log.name if log else "generated",
                             "users": dataset.num_users, "items": dataset.num_items,
                             "interactions": dataset.num_interactions, "embedding_dim": config.embedding_dim,
                             "max_length": config.max_length}  # fmt: skip

    tell("steps of training")
    rows = []
    for objective in (bce, softmax, Objective("cross-entropy", None, 0.0, 0.0)):
        step = time_steps(train, sizes, objective, config.steps, config.seed)
        rate = matmul_rate(step["tokens"], config.embedding_dim)
        limits = {way: step["flops"] / each / step["seconds"] for way, each in rate.items()}
        rows.append({"loss": objective.loss, **step, "rate": rate, "share": limits})
    found["steps"] = rows

    tell("growth with width, length, users and catalogue")
    growth: dict[str, list[dict[str, Any]]] = {}
    widths, lengths = ((16, 32), (10, 20)) if config.quick else ((32, 64, 128, 256), (10, 50, 100, 200))
    growth["embedding_dim"] = [
        {"at": dim, **time_steps(train, replace(sizes, embedding_dim=dim), bce, config.steps)} for dim in widths
    ]
    long = generated(500 if config.quick else 4000, max(dataset.num_items, 1000), 150, config.seed)
    growth["max_length"] = [
        {"at": length, **time_steps(all_histories(long), replace(sizes, max_length=length), bce, config.steps // 2)}
        for length in lengths
    ]
    growth["users"] = [
        {"at": users, **time_steps(all_histories(generated(users, 10_000, 9, 0)), sizes, bce, config.steps)}
        for users in ((500, 2000) if config.quick else (10_000, 100_000, 1_000_000))
    ]
    catalogues = (1000, 3000) if config.quick else config.catalogues
    for objective in (bce, softmax):
        growth[f"catalogue, {objective.loss}"] = [
            {"at": items, **time_steps(all_histories(generated(config.users, items, 9, 0)), sizes, objective,
                                       config.steps)}
            for items in catalogues
        ]  # fmt: skip
    found["growth"] = growth

    tell("memory")
    found["memory"] = [
        {"at": items, "loss": loss, **peak_memory(2000, items, config.embedding_dim, loss)}
        for items in catalogues
        for loss in MEASURED[: 1 if config.quick else None]
        if loss != "cross-entropy" or items <= 100_000
    ]

    tell("ranking and recommending")
    torch.manual_seed(config.seed)
    model = SASRec(sizes, dataset.num_items)
    counts = split.train.item_counts()
    repeats = 1 if config.quick else 3

    def users_a_second(work: Callable[[], Any], users: int) -> float:
        return users / median(_seconds(work) for _ in range(repeats))

    found["users_per_second"] = {
        "evaluate full": users_a_second(lambda: evaluate(model, split.test, train_counts=counts), len(split.test)),
        "evaluate sampled": users_a_second(
            lambda: evaluate(model, split.test, train_counts=counts, protocol="sampled"), len(split.test)
        ),
        "recommend 10": users_a_second(lambda: best(model, all_histories(dataset), 10), dataset.num_users),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.csv"
        rows_of_csv = 20_000 if config.quick else 1_000_000
        many = generated(rows_of_csv // 9, 50_000, 9, 1)
        users = np.repeat(np.arange(many.num_users), np.diff(many.offsets))
        pl.DataFrame({"user_id": users, "item_id": many.items, "timestamp": many.timestamps}).write_csv(path)
        found["rows_per_second"] = len(users) / _seconds(lambda: prepare(read_log(path)).save(Path(folder) / "dataset"))
    return found


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "compiled loops": kernels.library() is not None,
    }


def _seconds(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def tables(found: dict[str, Any]) -> list[Table]:
    """What ``bench`` found, to read."""
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
    for name in ("with", "at", "ms", "tokens", "µs a token"):
        growth.add_column(name, justify="left" if name == "with" else "right")
    for name, rows in found["growth"].items():
        for row in rows:
            token = 1e6 * row["seconds"] / row["tokens"]
            growth.add_row(name, f"{row['at']:,}", f"{1000 * row['seconds']:.2f}", f"{row['tokens']:,}", f"{token:.1f}")
    memory = Table(title="memory of training")
    for name in ("items", "loss", "MB at most", "times the table"):
        memory.add_column(name, justify="left" if name == "loss" else "right")
    for row in found["memory"]:
        memory.add_row(f"{row['at']:,}", row["loss"], f"{row['peak'] / 1e6:,.0f}", f"{row['peak'] / row['table']:.1f}")
    rates = Table(title="all else")
    rates.add_column("what")
    rates.add_column("a second", justify="right")
    for name, rate in found["users_per_second"].items():
        rates.add_row(f"users, {name}", f"{rate:,.0f}")
    rates.add_row("rows of CSV to a saved dataset", f"{found['rows_per_second']:,.0f}")
    return [steps, limit, growth, memory, rates]


def write(found: dict[str, Any], folder: Path) -> None:
    """``bench.json`` and ``bench.png``, each whole or not at all."""
    from seqrec.report.pictures import growth_picture  # brings matplotlib

    make_folder(folder)
    with replacing(folder / "bench.json") as new:
        new.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    curves = {
        name: [(row["at"], 1e6 * row["seconds"] / row["tokens"]) for row in rows]
        for name, rows in found["growth"].items()
    }
    growth_picture(curves, "microseconds a token", folder / "bench.png")
