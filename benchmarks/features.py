"""What features of items or users gain, and how well items that training never saw are ranked by them.

    python benchmarks/features.py gain beauty-5core.txt beauty-5core-attributes.json --seeds 2
    python benchmarks/features.py gain ml-100k.inter --users ml-100k.user --user-features age,gender,occupation
    python benchmarks/features.py cold beauty-5core.txt beauty-5core-attributes.json

``gain`` trains a model with and without features, with the same seeds, and compares the NDCG@10 of each user: the full
ranking, on validation items, or with ``--test`` on test items.

``cold`` withholds a tenth of the items. They leave the log before training, and come back as new items, with their
features. Users whose last item is withheld get the withheld items ranked after the rest of their history, beside a
random order and the order of popularity in the complete log without these last interactions, which nobody would know.
The other items are ranked as usual, with and without features.
"""

import argparse
import json
from typing import Any

import numpy as np
import polars as pl

from seqrec import Recommender, prepare, read_log
from seqrec.data.dataset import Dataset
from seqrec.data.prepare import with_tables
from seqrec.ranking import metrics, statistics
from seqrec.ranking.protocols import ranks

K = 10


def trained(args: argparse.Namespace, dataset: Dataset, seed: int, features: str | None, **more: Any) -> Recommender:
    """A model that is trained on a dataset whose tables may be read."""
    options = {"split": "last-two", "ensemble": 1, "transitions": "off", "features": features} | more
    options |= dict(pair.split("=") for pair in args.option)
    values = {name: _value(value) for name, value in options.items()}
    return Recommender(args.model, seed=seed, **values).fit(dataset)


def compared(after: np.ndarray, before: np.ndarray) -> str:
    """The mean difference of paired values, with its interval and the p of a t-test."""
    change = (after - before)[:, None]
    ((low, high),), (p,) = statistics.difference_intervals(change), statistics.paired_t_test(change)
    return f"{change.mean():+.4f} ({low:+.4f} to {high:+.4f}), p {p:.2g}"


def _value(text: Any) -> Any:
    try:
        return json.loads(text) if isinstance(text, str) else text
    except ValueError:
        return text


def gain(args: argparse.Namespace) -> None:
    dataset = with_tables(prepare(read_log(args.log)), args.items, args.users)
    both = {"features": args.items and args.features, "user_features": args.users and args.user_features}
    found: dict[str, list[np.ndarray]] = {"without": [], "with": []}
    for seed in range(args.seeds):
        for name, read in (("without", {"features": None}), ("with", both)):
            recommender = trained(args, dataset, seed, **read)
            split = recommender._split
            places = ranks(recommender.model, split.targets("test" if args.test else "valid"))
            found[name].append(metrics.ndcg(*places, K))
            ndcg, hits = found[name][-1].mean(), metrics.hit_rate(*places, K).mean()
            print(f"seed {seed}, {name}: NDCG@10 {ndcg:.4f} HR@10 {hits:.4f}; {recommender.summary}", flush=True)
    before, after = (np.mean(found[name], axis=0) for name in ("without", "with"))
    print(f"difference {compared(after, before)}")


def withheld(args: argparse.Namespace, whole: Dataset) -> tuple[Dataset, pl.DataFrame, np.ndarray]:
    """The dataset without a tenth of the items, descriptions of these, and which items they are, ``bool[I + 1]``."""
    random = np.random.default_rng(args.seed)
    away = np.zeros(whole.num_items + 1, dtype=bool)
    away[random.permutation(whole.num_items)[: whole.num_items // 10] + 1] = True
    users = np.repeat(np.arange(whole.num_users), np.diff(whole.offsets))
    kept = ~away[whole.items]
    log = pl.DataFrame({
        "user_id": whole.user_ids.gather(users[kept]),
        "item_id": whole.item_ids.gather(whole.items[kept].astype(np.int64) - 1),
    })  # fmt: skip
    assert whole.item_table is not None
    described = whole.item_table.frame
    warm, cold = described.filter(pl.Series(~away[1:])), described.filter(pl.Series(away[1:]))
    return prepare(log).with_items(warm), cold, away


def cold(args: argparse.Namespace) -> None:
    whole = prepare(read_log(args.log)).with_items(args.items)
    rest, described, away = withheld(args, whole)
    lasts = whole.items[whole.offsets[1:] - 1]
    asked = np.flatnonzero(away[lasts] & (np.diff(whole.offsets) > 1))
    histories, targets = {}, []
    for user in asked.tolist():
        items = whole.items[whole.offsets[user] : whole.offsets[user + 1]]
        before = items[:-1][~away[items[:-1]]]
        if len(before):
            histories[str(user)] = whole.item_ids.gather(before.astype(np.int64) - 1).to_list()
            targets.append(int(items[-1]))
    truth = np.array(targets)
    counts = np.bincount(whole.items, minlength=whole.num_items + 1)
    counts -= np.bincount(lasts, minlength=whole.num_items + 1)
    new = np.flatnonzero(away)
    order = new[np.argsort(-counts[new], kind="stable")]
    place = np.zeros(whole.num_items + 1, dtype=np.int64)
    place[order] = np.arange(len(order))
    popular = place[truth]
    discounts = 1 / np.log2(np.arange(K) + 2)
    values = {"random (exact)": np.full(len(truth), discounts.sum() / len(new))}
    values["popularity"] = np.where(popular < K, discounts[np.minimum(popular, K - 1)], 0.0)
    print(f"{len(new):,} items withheld, {len(truth):,} users", flush=True)
    warm: dict[str, np.ndarray] = {}
    for name, features in (("without", None), ("with", args.features)):
        recommender = trained(args, rest, args.seed, features)
        warm[name] = metrics.ndcg(*ranks(recommender.model, recommender._split.test), K)
        print(f"warm items, {name} features: NDCG@10 {warm[name].mean():.4f}; {recommender.summary}", flush=True)
    recommender.add_items(described)
    ids = whole.item_ids.gather(new - 1).to_list()
    frame = recommender.recommend(histories=histories, k=K, allow=ids)
    hits = pl.DataFrame({"user_id": list(histories), "item_id": whole.item_ids.gather(truth - 1)})
    found = hits.join(frame.with_columns(pl.col("user_id").cast(pl.String)), on=["user_id", "item_id"], how="left")
    places = found["rank"].to_numpy()
    values["features"] = np.nan_to_num(1 / np.log2(places.astype(np.float64) + 1), nan=0.0)
    for name, ndcg in values.items():
        beyond = compared(values["features"], ndcg)
        print(f"withheld items, {name}: NDCG@10 {ndcg.mean():.4f}; features beyond it {beyond}")
    share = recommender.recommend(histories=histories, k=K)["item_id"].is_in(ids).mean()
    print(f"share of withheld items among ten of the whole catalogue: {share:.3f}")
    print(f"warm items, with - without: {compared(warm['with'], warm['without'])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["gain", "cold"])
    parser.add_argument("log")
    parser.add_argument("items", nargs="?")
    parser.add_argument("--model", default="sasrec")
    parser.add_argument("--features", default="all")
    parser.add_argument("--users")
    parser.add_argument("--user-features", default="all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--test", action="store_true")
    parser.add_argument("--option", action="append", default=[], help="name=value of the Recommender, any number")
    args = parser.parse_args()
    {"gain": gain, "cold": cold}[args.what](args)


if __name__ == "__main__":
    main()
