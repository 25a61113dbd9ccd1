"""The recipe: options of a training that nobody gave are chosen from the log, each with its reason.

The rules read the log, the options and ``minutes``, never the clock, so that the same command chooses the same recipe
on every machine. docs/training.md says how each rule was found, on which logs, and what it costs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from seqrec.data.batches import trainable
from seqrec.data.split import Histories
from seqrec.errors import InputError
from seqrec.models import MODELS
from seqrec.models.ensemble import MIXED, in_turn, kinds_of
from seqrec.run.config import RunConfig
from seqrec.training.config import TrainConfig, default_negatives

# The constants of the rules.
#: ``max_length``: the first of these that holds the training histories of this share of the users; else the last.
LENGTHS, SHARE_OF_USERS = (50, 100, 200), 0.9
#: ``dropout`` for a median training history of at least so many items. Shorter ones get the plain value.
DROPOUTS = ((50, 0.2), (20, 0.3))
#: ``windows``: all of them, if the last ones leave out more than this share of the interactions.
LEFT_OUT = 0.2
#: ``loss``: cross-entropy for these models, up to so many tokens × items × width per epoch.
WITH_CROSS_ENTROPY = ("sasrec", "ssept", "gru4rec", "lrurec")
AFFORDABLE = 64 * 10**10
#: ``batch_size``: the first of these that makes so many steps per epoch; else the last.
BATCH_SIZES, FEWEST_STEPS = (128, 64, 32, 16), 150
# The cost of an epoch is estimated as if every machine computed so many multiply-adds per second in training, of which
# a token takes as many as this number of candidates in addition to those of its loss; more in the mean of three kinds.
RATE, MIXED_CANDIDATES = 5e10, 3400
#: The same number for each model, from the time of its epoch beside SASRec's (docs/models.md).
CANDIDATES = {
    "sasrec": 2000, "ssept": 4300, "gru4rec": 2800, "caser": 3000, "bert4rec": 4000, "tisasrec": 4900,
    "esasrec": 5300, "lrurec": 3500, "hstu": 2600, "slirec": 15_000,
}  # fmt: skip
#: Share of ``minutes`` that is left for training, less some seconds for whatever is done once, but at least the other
#: share.
TRAINING_SHARE, SECONDS_ONCE, LEAST_SHARE = 0.9, 15, 0.1
#: Minutes that ``loss`` and ``ensemble`` are chosen for if no time limit is given.
USUAL_MINUTES = 10.0
#: Epochs that a model needs, with the fast learning rate if there are no more.
USUAL_EPOCHS = 20
#: ``loss``: cross-entropy only if the minutes are enough for so many models, or it costs at most so many times as much
#: as sampled softmax: four models trained with sampled softmax rank better than one with cross-entropy.
MODELS_WITHIN, DEARER = 2, 2.5
#: ``ensemble``: as many models as the minutes are enough for, up to this number; one where few users are trained on.
MOST_MODELS, FEW_USERS = 6, 500
#: ``item_init``: spectral, for these models, if it takes at most this share of the minutes; seconds per item.
FROM_NEIGHBOURS = (*MIXED, "lrurec")
SPECTRAL_SHARE, SPECTRAL_SECONDS = 0.1, 1e-4
#: ``learning_rate``: the first of these whose number of steps ``minutes`` do not allow; at most that of small batches
#: for fewer windows per step than usual.
FAST_RATES, SMALL_BATCH_RATE = ((3500, 0.003), (5500, 0.002)), 0.002


@dataclass(frozen=True, eq=False)
class Facts:
    """What the rules know of the log and of the command.

    Args:
        lengths: number of items of each training history with at least two, ``int64[U]``.
        num_items: size of the catalogue.
        minutes: time limit of the command, or None.
        has_times: whether the log has times.
    """

    lengths: np.ndarray
    num_items: int
    minutes: float | None = None
    has_times: bool = True

    def tokens(self, max_length: int, windows: str) -> int:
        """Tokens per epoch."""
        targets = self.lengths - 1
        return int((targets if windows == "all" else np.minimum(targets, max_length)).sum())

    def windows(self, max_length: int, windows: str) -> int:
        """Windows per epoch."""
        return int((-(-(self.lengths - 1) // max_length)).sum()) if windows == "all" else len(self.lengths)


@dataclass(frozen=True)
class Recipe:
    """Options with nothing left to choose.

    Args:
        sizes: config of the model.
        training: options of training.
        reasons: for options that were chosen, if they are not the plain ones or need a word, the reason.
    """

    sizes: Any
    training: TrainConfig
    reasons: dict[str, str] = field(default_factory=dict)

    def get(self, name: str) -> Any:
        """The value of an option of the model or of the training."""
        return getattr(self.sizes if hasattr(self.sizes, name) else self.training, name, None)

    def set(self, name: str, value: Any, reason: str = "") -> "Recipe":
        """The recipe with another value of an option."""
        part = "sizes" if hasattr(self.sizes, name) else "training"
        reasons = self.reasons | ({name: reason} if reason else {})
        return replace(self, **{part: replace(getattr(self, part), **{name: value})}, reasons=reasons)


def facts_of(histories: Histories, minutes: float | None = None) -> Facts:
    """What the rules know of training histories."""
    dataset = histories.dataset
    return Facts(trainable(histories).lengths, dataset.num_items, minutes, dataset.has_timestamps)


def choose(model: str, sizes: Any, training: TrainConfig, facts: Facts) -> Recipe:
    """Choose the options that are None. Those that are given stay, and the others follow from them.

    Args:
        model: name of a model that is trained.
        sizes: its config.
        training: options of training.
        facts: what is known of the log. Without a trainable history nothing is chosen.
    """
    recipe = Recipe(sizes, training)
    for name, rule in RULES.items() if len(facts.lengths) else ():
        if _open(recipe, name):
            recipe = recipe.set(name, *rule(model, recipe, facts))
    return recipe


def again(configs: Sequence[RunConfig], model: str, sizes: Any, training: TrainConfig) -> Recipe | None:
    """The recipe of the first of these runs that the given options agree with, or None.

    A resumed run keeps what was chosen for it, also if other ``minutes`` or a later version would choose otherwise.
    """
    for config in configs:
        values = config.training | config.model_config
        recipe = Recipe(sizes, training, dict(config.recipe))
        try:
            for name in RULES if config.model == model else ():
                if name in values and _open(recipe, name):
                    recipe = recipe.set(name, values[name])
        except InputError:
            continue  # a damaged value; opening the run reports it
        if config.model == model and all(recipe.get(name) == values.get(name) for name in RULES):
            return recipe
    return None


def lines(recipe: Recipe) -> list[str]:
    """What was chosen and why, for people."""
    chosen = [f"  {name} {recipe.get(name)}: {reason}" for name, reason in recipe.reasons.items()]
    return ["chosen from the log, as not given:", *chosen] if chosen else []


def _open(recipe: Recipe, name: str) -> bool:
    """Whether an option exists and is to be chosen."""
    return any(hasattr(part, name) and getattr(part, name) is None for part in (recipe.sizes, recipe.training))


def _max_length(model: str, recipe: Recipe, facts: Facts) -> tuple[int, str]:
    del model, recipe
    longest = float(np.quantile(facts.lengths, SHARE_OF_USERS))
    value = next((length for length in LENGTHS if longest <= length), LENGTHS[-1])
    long = f"{1 - SHARE_OF_USERS:.0%} of the users have {longest:,.0f} items or more to train on"
    return value, "" if value == LENGTHS[0] else long


def _dropout(model: str, recipe: Recipe, facts: Facts) -> tuple[float, str]:
    del model
    median = float(np.median(facts.lengths))
    for least, value in DROPOUTS:
        if median >= least:
            return value, f"half of the users have {median:,.0f} items or more to train on"
    return recipe.sizes.PLAIN["dropout"], ""


def _time_buckets(model: str, recipe: Recipe, facts: Facts) -> tuple[int, str]:
    if facts.has_times:
        return recipe.sizes.PLAIN["time_buckets"], ""
    return 0, f"the log has no times, so {model} has no bias for them"


def _windows(model: str, recipe: Recipe, facts: Facts) -> tuple[str, str]:
    del model
    length = _length(recipe)
    left = 1 - facts.tokens(length, "last") / facts.tokens(length, "all")
    if left <= LEFT_OUT or recipe.get("random_start"):
        return "last", ""
    return "all", f"the last {length} items of each user leave out {left:.0%} of the interactions"


def _loss(model: str, recipe: Recipe, facts: Facts) -> tuple[str | None, str]:
    plain, training = MODELS[model].LOSS, recipe.training
    needs_negatives = (training.negatives, training.popularity) != (None, None) or training.logq_correction != "all"
    if model not in WITH_CROSS_ENTROPY or needs_negatives or recipe.get("elu"):
        return plain, ""
    size = f"{_tokens(recipe, facts):,} tokens × {facts.num_items:,} items per epoch"
    if _tokens(recipe, facts) * facts.num_items * recipe.sizes.embedding_dim > AFFORDABLE:
        return plain, f"{size} are too many for cross-entropy"
    models = epochs_within(model, facts, recipe, facts.num_items) / USUAL_EPOCHS
    beside = CANDIDATES[model]
    dearer = (facts.num_items + beside) / (default_negatives(plain) + beside)
    if models < MODELS_WITHIN and (dearer > DEARER or (facts.minutes is not None and models < 0.5)):
        return plain, f"{minutes_of(facts):g} minutes are too few for several models with cross-entropy and {size}"
    return "cross-entropy", f"affordable with {size}"


def _batch_size(model: str, recipe: Recipe, facts: Facts) -> tuple[int, str]:
    del model
    count = facts.windows(_length(recipe), recipe.training.windows or "last")
    value = next((size for size in BATCH_SIZES if count >= size * FEWEST_STEPS), BATCH_SIZES[-1])
    steps = -(-count // BATCH_SIZES[0])
    few = f"{count:,} windows make only {steps:,} step{'s' * (steps != 1)} of {BATCH_SIZES[0]}"
    return value, "" if value == BATCH_SIZES[0] else few


def _ensemble(model: str, recipe: Recipe, facts: Facts) -> tuple[int, str]:
    least = 2 if recipe.training.ensemble_kinds == "mixed" else 1
    if not MODELS[model].FACTORED or recipe.get("elu") or len(facts.lengths) < FEW_USERS:
        return least, ""
    mixed = recipe.training.ensemble_kinds == "mixed" or _mixes(model, recipe)
    epochs = epochs_within(model, facts, recipe, _candidates(model, recipe, facts), mixed)
    count = int(min(MOST_MODELS, max(least, epochs // USUAL_EPOCHS)))
    if count == 1:
        return 1, ""
    return count, f"{minutes_of(facts):g} minutes are enough to train so many, and their mean ranks better than one"


def _mixes(model: str, recipe: Recipe) -> bool:
    """Whether several models would be of several kinds."""
    can = model in MIXED and not recipe.get("sse_target") and not recipe.get("elu")
    return can and recipe.training.ensemble_kinds in (None, "mixed")


def _ensemble_kinds(model: str, recipe: Recipe, facts: Facts) -> tuple[str, str]:
    del facts
    count = recipe.training.ensemble
    if count == 1 or not _mixes(model, recipe):
        return "same", ""
    kinds = kinds_of(model, count or len(MIXED), "mixed")
    return "mixed", f"{in_turn(kinds)} rank better together than as many of one kind"


def _item_init(model: str, recipe: Recipe, facts: Facts) -> tuple[str, str]:
    del recipe
    if model not in FROM_NEIGHBOURS:
        return "random", ""
    if facts.num_items * SPECTRAL_SECONDS > 60 * minutes_of(facts) * SPECTRAL_SHARE:
        return (
            "random",
            f"{minutes_of(facts):g} minutes are too few to start from neighbours of {facts.num_items:,} items",
        )
    return "spectral", "items that occur together start near each other, which needs fewer epochs and ranks better"


def _learning_rate(model: str, recipe: Recipe, facts: Facts) -> tuple[float, str]:
    training, plain = recipe.training, TrainConfig.PLAIN["learning_rate"]
    if facts.minutes is None:
        return plain, ""
    mixed = training.ensemble_kinds == "mixed"
    epochs = epochs_within(model, facts, recipe, _candidates(model, recipe, facts), mixed) / (training.ensemble or 1)
    size = training.batch_size or BATCH_SIZES[0]
    steps = epochs * -(-facts.windows(_length(recipe), training.windows or "last") // size)
    rate = next((fast for few, fast in FAST_RATES if steps < few), plain)
    if rate == plain:
        return plain, ""
    rate = rate if size >= BATCH_SIZES[0] else min(rate, SMALL_BATCH_RATE)
    return rate, f"{facts.minutes:g} minutes are enough for about {max(1, round(steps)):,} steps"


def _candidates(model: str, recipe: Recipe, facts: Facts) -> int:
    """Number of items that each token is scored against in training."""
    loss = recipe.training.loss or MODELS[model].LOSS
    return facts.num_items if loss == "cross-entropy" else recipe.training.negatives or default_negatives(loss)


#: The rules in their order: each may use what those before it chose.
RULES: dict[str, Callable[[str, Recipe, Facts], tuple[Any, str]]] = {
    "max_length": _max_length,
    "dropout": _dropout,
    "time_buckets": _time_buckets,
    "windows": _windows,
    "loss": _loss,
    "batch_size": _batch_size,
    "ensemble": _ensemble,
    "ensemble_kinds": _ensemble_kinds,
    "item_init": _item_init,
    "learning_rate": _learning_rate,
}


def minutes_of(facts: Facts) -> float:
    """The minutes that the recipe is for."""
    return USUAL_MINUTES if facts.minutes is None else facts.minutes


def epochs_within(model: str, facts: Facts, recipe: Recipe, candidates: int, mixed: bool = False) -> float:
    """The number of epochs that ``minutes`` are assumed to allow.

    Args:
        model: name of the model.
        facts: what is known of the log.
        recipe: options chosen so far.
        candidates: number of items that each token is scored against.
        mixed: whether the models are of several kinds.
    """
    candidates += MIXED_CANDIDATES if mixed else CANDIDATES[model]
    products = 3.0 * _tokens(recipe, facts) * recipe.sizes.embedding_dim * candidates
    seconds = 60 * minutes_of(facts)
    return max(seconds * TRAINING_SHARE - SECONDS_ONCE, seconds * LEAST_SHARE) * RATE / products


def _length(recipe: Recipe) -> int:
    length: int = recipe.sizes.max_length
    return length


def _tokens(recipe: Recipe, facts: Facts) -> int:
    return facts.tokens(_length(recipe), recipe.training.windows or "last")
