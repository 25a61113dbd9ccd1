"""The demonstration: SASRec on a generated log whose best possible score is known."""

from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.table import Table

from seqrec.data.synthetic import synthetic_log
from seqrec.ranking.metrics import MAIN
from seqrec.ranking.protocols import Evaluation
from seqrec.recommender import Recommender
from seqrec.report.page import write_report
from seqrec.report.pictures import recommendations_picture, training_curve
from seqrec.report.tables import table
from seqrec.run.folder import check_free

#: Chosen on the validation items of logs with other seeds.
OPTIONS: dict[str, Any] = {
    "epochs": 40, "learning_rate": 0.003, "dropout": 0.2, "evaluate_every": 1, "loss": "sampled-softmax",
    "batch_size": 128, "ensemble": 1,
}  # fmt: skip
#: The best possible score is known for the last item of each user, so that is what the demonstration holds out.
SPLIT = "last-two"


def run_demo(
    out: Path,
    console: Console,
    *,
    overwrite: bool = False,
    progress: bool = True,
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train on the built-in log, print the results, and write a run folder with two pictures, and a report.

    Args:
        out: run folder. The report is beside it, ``NAME-report.html``.
        console: console for tables and text.
        overwrite: replace a run in ``out``.
        progress: show a progress bar.
        options: options of the recommender. By default :data:`OPTIONS`.

    Returns:
        ``run`` (the folder), ``report`` (the page), ``share_of_best`` (NDCG@10 as a share of the best possible), and
        ``best``, ``metrics`` and ``popularity`` (NDCG@10 and HR@10 each). If training was interrupted, only ``run``.
    """
    check_free(out, overwrite)
    console.print("Generating a log: users whose tastes drift, and items in genres, each with likely successors.")
    log = synthetic_log()
    recommender = Recommender("sasrec", **(OPTIONS if options is None else options), split=SPLIT)
    recommender.fit(log.frame, out, overwrite=overwrite, progress=progress, console=console)
    result: dict[str, Any] = {"run": str(out)}
    if recommender.interrupted:
        console.print(f"stopped; {out} has the weights so far")
        return result
    evaluation = recommender.evaluate()
    console.print(table(evaluation, recommender.model_name))
    console.print(_beside_best(evaluation, log.best))
    rows = _in_words(recommender)
    grid = Table(title="recommendations", show_lines=True)
    for name in rows[0]:
        grid.add_column(name)
    for row in rows:
        grid.add_row(*row.values())
    console.print(grid)
    training_curve(pl.DataFrame(recommender.epochs), out / "training.png", log.best_valid["ndcg@10"])
    recommendations_picture(rows, out / "recommendations.png")
    page = out.with_name(f"{out.name}-report.html")
    write_report([out], page)
    console.print(f"a page about all of this: {page}", soft_wrap=True)
    console.print(f"run written to {out}; try: seqrec recommend {out} --users {rows[0]['user']}", soft_wrap=True)
    return result | {
        "report": str(page),
        "best": {name: log.best[name] for name in MAIN},
        "metrics": {name: evaluation.metrics[name] for name in MAIN},
        "popularity": {name: evaluation.baselines["popularity"].metrics[name] for name in MAIN},
        "share_of_best": evaluation.metrics["ndcg@10"] / log.best["ndcg@10"],
    }


def _beside_best(evaluation: Evaluation, best: dict[str, float]) -> Table:
    grid = Table(title="compared with the best possible")
    for name in ("", "NDCG@10", "HR@10", "share of the best NDCG@10"):
        grid.add_column(name, justify="right" if name else "left")
    shown = {"best possible (Bayes-optimal)": best, "sasrec": evaluation.metrics}
    shown |= {name: values.metrics for name, values in evaluation.baselines.items()}
    for name, metrics in shown.items():
        share = metrics["ndcg@10"] / best["ndcg@10"]
        grid.add_row(name, f"{metrics['ndcg@10']:.4f}", f"{metrics['hr@10']:.4f}", f"{share:.1%}")
    return grid


def _in_words(recommender: Recommender, people: int = 4, k: int = 5) -> list[dict[str, str]]:
    """The end of the history of a few users, and the recommendations for them."""
    dataset = recommender.dataset
    users = dataset.user_ids.head(people)
    frame = recommender.recommend(users=users, k=k)
    rows = []
    for index, user in enumerate(users):
        end = int(dataset.offsets[index + 1])
        start = max(int(dataset.offsets[index]), end - k)
        history = dataset.item_ids.gather(dataset.items[start:end] - 1).to_list()
        best = frame.filter(pl.col("user_id") == user)["item_id"].to_list()
        rows.append({"user": str(user), "lately": "\n".join(history), "recommended next": "\n".join(best)})
    return rows
