"""How fast a GPU trains SASRec, and whether it trains as well as the CPU.

    python benchmarks/gpu.py games.txt
    make bench-gpu LOG=games.txt

For each loss and batch size: tokens per second from the first task to the end of the last step, drawn and copied as in
training, and the share of the device's peak rate that the model's own operations use (MFU; operations counted by
``seqrec.tools.steps.arithmetic``, without padding). Then the same training on the device and on the CPU: seconds until
the validation items reach a share of the CPU's best NDCG@10, and the test items' NDCG@10 (full ranking) with the 95 %
interval of the difference over users. The output is Markdown for RESULTS.md. Without a log, the demo's is used.

``--device cpu`` runs the same code without a GPU, to try it.
"""

import argparse
import sys
import time
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seqrec import InputError, Recommender, TrainConfig, prepare, read_log, split_last_two
from seqrec.data.dataset import Dataset
from seqrec.data.split import Split
from seqrec.data.synthetic import synthetic_log
from seqrec.device import pick_device
from seqrec.models.blocks import dropouts_of
from seqrec.models.sasrec import SASRec, SASRecConfig
from seqrec.ranking import metrics, statistics
from seqrec.ranking.protocols import ranks
from seqrec.tools.bench import machine
from seqrec.tools.steps import arithmetic, matmul_rate
from seqrec.training.checks import objective_of
from seqrec.training.config import BETA1
from seqrec.training.objective import mark_tables
from seqrec.training.optim import RowAdam
from seqrec.training.prefetch import prefetched
from seqrec.training.step import epoch_of, optimizer_step, seed_step, tasks_of

#: Peak rates of dense bfloat16 products, 10^12 operations per second, from NVIDIA's data sheets; the first part of a
#: name that fits counts.
PEAKS = {
    "H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "A10": 125, "RTX 4090": 165,
}  # fmt: skip
WARM_UP = 5  # steps that are not timed


def peak_of(device: torch.device, given: float | None) -> float:
    """The peak rate of a device in operations per second: as given, from the table, or on the CPU as measured."""
    if given is not None:
        return given * 1e12
    if device.type == "cpu":
        return max(matmul_rate(4096, 64).values())
    name = torch.cuda.get_device_name(device)
    for part, rate in PEAKS.items():
        if part in name:
            return rate * 1e12
    raise InputError(f"the peak rate of {name} is unknown; give it with --peak, in 10^12 operations per second")


def speed(split: Split, device: torch.device, sizes: SASRecConfig, config: TrainConfig, steps: int) -> dict[str, float]:
    """Tokens and operations per second of training steps, drawn ahead as the loop does."""
    torch.manual_seed(0)
    histories = split.train
    model = SASRec(sizes, histories.dataset.num_items)
    mark_tables(model)
    model.to(device).train()
    objective = objective_of(model, model.num_items, config)
    sampler, dropouts = objective.sampler(histories), dropouts_of(model)
    optimizer = RowAdam(model, 0.001, betas=(BETA1, config.beta2))
    epochs = (epoch_of(model, histories, config, number) for number in count())
    drawn = chain.from_iterable(tasks_of(model, epoch, histories, objective, sampler) for epoch in epochs)
    first = epoch_of(model, histories, config)
    tokens = pairs = 0
    start = 0.0
    with prefetched(islice(drawn, WARM_UP + steps), device) as tasks:
        for step, task in enumerate(tasks):
            if step == WARM_UP:
                _wait(device)
                start = time.perf_counter()
            seed_step(dropouts, first, step, device)
            optimizer_step(model, optimizer, task, objective, device)
            if step >= WARM_UP:
                lengths = task.batch.host_offsets.diff()
                tokens += int(lengths.sum())
                pairs += int((lengths * (lengths + 1) // 2).sum())
        _wait(device)
        seconds = time.perf_counter() - start
    candidates = model.num_items if objective.negatives is None else 1 + objective.negatives
    operations = arithmetic(model.config, tokens, pairs, candidates)
    return {"tokens": tokens / seconds, "operations": operations / seconds, "step": seconds / steps}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def trained(dataset: Dataset, split: Split, device: str, options: dict[str, Any]) -> tuple[list[dict], np.ndarray]:
    """The epochs of a training, and the NDCG@10 of each test user, ranked on the CPU."""
    recommender = Recommender("sasrec", split="last-two", device=device, **options).fit(dataset)
    return recommender.epochs, metrics.ndcg(*ranks(recommender.model.cpu(), split.test), 10)


def seconds_to(epochs: list[dict[str, Any]], goal: float) -> float | None:
    """Seconds of training until the validation items have reached a NDCG@10; None if they never did."""
    return next((row["total_seconds"] for row in epochs if (row.get("ndcg@10") or 0.0) >= goal), None)


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def speeds(split: Split, device: torch.device, options: argparse.Namespace) -> str:
    """The table of speeds."""
    peak, rows = peak_of(device, options.peak), []
    sizes = SASRecConfig(embedding_dim=options.embedding_dim, max_length=options.max_length, dropout=0.2).resolved()
    for loss in options.losses.split(","):
        for batch_size in map(int, options.batch_sizes.split(",")):
            found = speed(split, device, sizes, TrainConfig(loss=loss, batch_size=batch_size), options.steps)
            share = found["operations"] / peak
            rows.append([loss, f"{batch_size:,}", f"{found['tokens']:,.0f}", f"{1000 * found['step']:.2f} ms",
                         f"{found['operations'] / 1e12:.3f}", f"{share:.2%}"])  # fmt: skip
    head = ["loss", "users per batch", "tokens/s", "a step", "10^12 operations/s", f"MFU (of {peak / 1e12:,.3g})"]
    return table(head, rows)


def qualities(dataset: Dataset, split: Split, device: torch.device, options: argparse.Namespace) -> str:
    """The table of quality and time to quality, a mean over seeds."""
    given = {"embedding_dim": options.embedding_dim, "max_length": options.max_length, "epochs": options.epochs,
             "evaluate_every": 1, "patience": 0, "ensemble": 1, "transitions": "off"}  # fmt: skip
    names = ["cpu", str(device)]
    found: dict[str, list[Any]] = {name: [] for name in names}
    for seed in range(options.seeds):
        for name in found:
            found[name].append(trained(dataset, split, name, given | {"seed": seed}))
    goals = [options.share * max(row.get("ndcg@10") or 0.0 for row in epochs) for epochs, _ in found["cpu"]]
    users = {name: np.mean([values for _, values in runs], axis=0) for name, runs in found.items()}
    rows = []
    for name, runs in found.items():
        seconds = [seconds_to(epochs, goal) for (epochs, _), goal in zip(runs, goals, strict=True)]
        reached = "never" if None in seconds else f"{np.mean(seconds):.1f} s"  # type: ignore[arg-type]
        whole = np.mean([epochs[-1]["total_seconds"] for epochs, _ in runs])
        low, high = statistics.difference_intervals((users[name] - users["cpu"])[:, None])[0]
        rows.append([name, f"{whole:.1f} s", reached, f"{users[name].mean():.4f}", f"{low:+.4f} to {high:+.4f}",
                     "yes" if low <= 0 <= high else "no"])  # fmt: skip
    head = ["device", f"{options.epochs} epochs", f"to NDCG@10 {np.mean(goals):.3f} (validation)", "NDCG@10 (test)",
            "less the CPU's", "equal within the interval"]  # fmt: skip
    return table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("log", type=Path, nargs="?")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--peak", type=float, help="peak rate of the device, 10^12 operations per second")
    parser.add_argument("--losses", default="sampled-softmax,cross-entropy")
    parser.add_argument("--batch-sizes", default="128,1024,8192")
    parser.add_argument("--embedding-dim", type=int, default=64)
    parser.add_argument("--max-length", type=int, default=50)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--share", type=float, default=0.98, help="share of the CPU's best validation NDCG@10 to reach")
    options = parser.parse_args()
    try:
        device = pick_device(options.device)
        peak_of(device, options.peak)
        dataset = prepare(synthetic_log().frame if options.log is None else read_log(options.log))
    except InputError as error:
        sys.exit(f"bench-gpu: {error}")
    split = split_last_two(dataset)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else machine()["processor"]
    log = "the demo's log" if options.log is None else options.log.name
    print(f"{name}, torch {torch.__version__}; {log}: {dataset.num_users:,} users, {dataset.num_items:,} items\n")
    print(speeds(split, device, options), flush=True)
    print()
    print(qualities(dataset, split, device, options))


if __name__ == "__main__":
    main()
