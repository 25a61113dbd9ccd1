# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # SASRec and SSE-PT on Amazon Electronics
#
# The way of the
# [SASRec notebook](https://github.com/recommenders-team/recommenders/blob/main/examples/00_quick_start/sasrec_amazon.ipynb)
# of Microsoft Recommenders, with `seqrec`: fetch the reviews, keep users and items with at least 10 interactions,
# leave the last two items of each user out, train, rank the last one against 100 negatives, and look at the result.
#
# - **SASRec** (Kang & McAuley 2018) predicts the next item by self-attention over the items before.
# - **SSE-PT** (Wu et al. 2020) joins an embedding of the user to each item, and regularises it by replacing users
#   at random while it trains.

# %%
import tempfile
from pathlib import Path

import polars as pl
from IPython.display import Image, display

from seqrec import InputError, PrepareConfig, Recommender, fetch, prepare, read_log, split_last_two, synthetic_log
from seqrec.data.fetch import SOURCES
from seqrec.report.pictures import recommendations_picture, training_curve

# %% [markdown]
# ## Parameters
#
# The cell below is the one that [papermill](https://papermill.readthedocs.io) replaces:
# `papermill sasrec_amazon.ipynb mine.ipynb -p model ssept -p log my_interactions.csv`.

# %% tags=["parameters"]
log = "amazon-electronics"  # a name that `seqrec fetch` knows, the path of a log of your own, or "embedded"
model = "sasrec"  # or "ssept"
loss = None  # what the model's page recommends without it; "bce" is that of both papers
min_interactions = 10  # of each user and of each item
max_length = 50  # items of a history that the model sees
embedding_dim = 100
num_blocks = 2
num_heads = 1
dropout = 0.1
epochs = 10
evaluate_every = 6  # epochs between validations; the last epoch is validated too
batch_size = 128
learning_rate = 0.001
test_negatives = 100
seed = 100
run_folder = None  # where the trained model is kept, such as "runs/amazon"; nowhere without it


# %%
def record(name, value):
    """Keep a result in the notebook, unseen, where scrapbook's `read_notebook` and other programs find it."""
    scrap = {"name": name, "data": value, "encoder": "json", "version": 1}
    about = {"scrapbook": {"name": name, "data": True, "display": False}}
    display({"application/scrapbook.scrap.json+json": scrap}, metadata=about, raw=True)


# %% [markdown]
# ## Data
#
# Amazon Electronics is a download of 0.5 GB, once. Where it cannot be fetched, a small made-up log takes its place:
# walks through items of some genres, by a known rule.

# %%
data = log
if log in SOURCES:
    try:
        path = fetch(log, progress=False)
    except InputError:
        print(f"{log} cannot be fetched from here: the embedded log takes its place")
        data = "embedded"
else:
    path = log
frame = synthetic_log().frame if data == "embedded" else read_log(path)
frame.head()

# %% [markdown]
# Users and items with fewer than 10 interactions go, in one pass: both are counted on the same log, so that some
# may have fewer afterwards. `core="repeat"` would go on until none has.

# %%
filters = PrepareConfig(min_user_interactions=min_interactions, min_item_interactions=min_interactions, core="once")
dataset = prepare(frame, filters)
before, after = dataset.before, dataset.statistics
pl.DataFrame(
    [
        {"": name, "read": float(getattr(before, name)), "kept": float(getattr(after, name))}
        for name in ("users", "items", "interactions", "median_length", "max_length")
    ]
)

# %% [markdown]
# Ids have become indices by now; `dataset.user_ids` and `dataset.item_ids` lead back. The last item of each user
# tests, the one before it validates, and the rest trains, as in the papers. `fit` does this split by itself when asked
# for `split="last-two"`; here it is to be seen. Without being asked, `fit` splits by time if the log has times.

# %%
split = split_last_two(dataset)
user = 0
history = dataset.item_ids.gather(dataset.items[dataset.offsets[user] : dataset.offsets[user + 1]] - 1).to_list()
print(f"{len(split.train):,} users train, {len(split.valid):,} validate, {len(split.test):,} test")
print(f"{dataset.user_ids[user]} trains with {len(history) - 2} items, validates with {history[-2]!r}, ", end="")
print(f"tests with {history[-1]!r}")

# %% [markdown]
# ## Training
#
# The model is a name. Negatives are drawn inside the training loop: there is no sampler to start, and none to stop.

# %%
recommender = Recommender(
    model,
    ensemble=1,  # by default as many models are averaged as ten minutes are enough for
    max_length=max_length,
    embedding_dim=embedding_dim,
    num_blocks=num_blocks,
    num_heads=num_heads,
    dropout=dropout,
    loss=loss,
    epochs=epochs,
    evaluate_every=evaluate_every,
    patience=0,  # all epochs are trained; the best validated one is kept
    batch_size=batch_size,
    learning_rate=learning_rate,
    seed=seed,
    split="last-two",
)
recommender.fit(dataset, run_folder, overwrite=run_folder is not None)
print(recommender.summary)

# %%
temporary = tempfile.TemporaryDirectory()  # goes with the kernel; the notebook keeps the pictures
pictures = Path(temporary.name)
training_curve(pl.DataFrame(recommender.epochs), pictures / "training.png")
Image(pictures / "training.png", width=640)

# %% [markdown]
# ## Evaluation
#
# Every user's last item is ranked against items that the user never met. The classic notebook evaluates 10,000 users,
# and draws negatives that may repeat; here it is all users, and 100 different negatives.

# %%
evaluation = recommender.evaluate("sampled", negatives=test_negatives, seed=seed)
result = {"ndcg@10": evaluation.metrics["ndcg@10"], "Hit@10": evaluation.metrics["hr@10"]}
display(result)

# %% [markdown]
# Beside baselines on the same negatives, and in the ranking of the whole catalogue, which is the task that a shop has:

# %%
full = recommender.evaluate("full", seed=seed)


def line(name, sampled, ranked):
    """Main metrics of both protocols."""
    both = {"sampled": sampled.metrics, "full": ranked.metrics}
    values = {f"{p} {m}": round(found[m], 4) for p, found in both.items() for m in ("ndcg@10", "hr@10")}
    return {"model": name, **values}


lines = [line(model, evaluation, full)]
lines += [line(name, scores, full.baselines[name]) for name, scores in evaluation.baselines.items()]
pl.DataFrame(lines)

# %% [markdown]
# ## Recommendations

# %%
people = dataset.user_ids.head(3)
best = recommender.recommend(users=people, k=5)
rows = []
for number, person in enumerate(people):
    lately = dataset.items[max(dataset.offsets[number], dataset.offsets[number + 1] - 5) : dataset.offsets[number + 1]]
    rows.append(
        {
            "user": str(person),
            "lately": "\n".join(str(item) for item in dataset.item_ids.gather(lately - 1)),
            "recommended next": "\n".join(str(item) for item in best.filter(pl.col("user_id") == person)["item_id"]),
        }
    )
recommendations_picture(rows, pictures / "recommendations.png")
Image(pictures / "recommendations.png", width=640)

# %% [markdown]
# ## What is recorded
#
# Results for programs: the cell below shows nothing, and keeps values in the notebook as
# [scrapbook](https://nteract-scrapbook.readthedocs.io) does.

# %%
record("data", data)
record("model", model)
record("users", after.users)
record("items", after.items)
record("epochs", [row["epoch"] for row in recommender.epochs if "ndcg@10" in row])
record("result", result)
record("baselines", {name: scores.metrics["ndcg@10"] for name, scores in evaluation.baselines.items()})
record("recommendations", {row["user"]: row["recommended next"].split("\n") for row in rows})
