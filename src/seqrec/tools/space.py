"""What tuning searches: a few options per model, each with the values that are tried."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from seqrec.models import MODELS
from seqrec.training.config import TrainConfig
from seqrec.training.recipe import RULES, Recipe


@dataclass(frozen=True)
class Span:
    """Numbers between two ends, on a logarithmic scale if ``log``."""

    least: float
    most: float
    log: bool = False


Domain = Span | tuple[Any, ...]

_RATE = Span(3e-4, 1e-2, log=True)
_TRAINING: dict[str, Domain] = {
    "learning_rate": _RATE,
    "table_learning_rate": _RATE,
    "batch_size": (16, 32, 64, 128, 256),
    "average_decay": (0.0, 0.6, 0.8, 0.9),
    "ensemble": (1,),  # besides as many models as the recipe chose: Study.ask says which trials train how many
}
_SIZES: dict[str, Domain] = {"max_length": (20, 50, 100, 200), "embedding_dim": (32, 64, 128)}
_DROPOUT: dict[str, Domain] = {"dropout": Span(0.0, 0.7)}
_LOSS: dict[str, Domain] = {
    "loss": ("cross-entropy", "sampled-softmax", "gbce"),
    "negatives": (256, 512, 1024, 2048),
}
_BCE: dict[str, Domain] = {"negatives": (1, 2, 4, 8)}
_BLOCKS: dict[str, Domain] = {"num_blocks": (1, 2, 3)}

#: Options that are searched, by model. Those that were given are not, and the values of the recipe are always among
#: the choices. ``negatives`` follows ``loss``, because cross-entropy has none.
SPACE: dict[str, dict[str, Domain]] = {
    "sasrec": _TRAINING | _SIZES | _DROPOUT | _BLOCKS | _LOSS,
    "ssept": _TRAINING | _SIZES | _DROPOUT | _BLOCKS | _LOSS,
    "gru4rec": _TRAINING
    | _SIZES
    | {"embedding_dropout": Span(0.0, 0.5), "hidden_dropout": Span(0.0, 0.7), "num_layers": (1, 2)}
    | _LOSS,
    "caser": _TRAINING | _SIZES | _DROPOUT | {"window": (3, 5, 9), "num_targets": (1, 2, 3)} | _BCE,
    "slirec": _TRAINING | _SIZES | _DROPOUT | _BCE,
    "bert4rec": _TRAINING | _SIZES | _DROPOUT | _BLOCKS | {"mask_probability": Span(0.1, 0.6)} | _LOSS,
    "tisasrec": _TRAINING | _SIZES | _DROPOUT | _BLOCKS | _LOSS,
    "esasrec": _TRAINING | _SIZES | _DROPOUT | _BLOCKS | _LOSS,
    "lrurec": _TRAINING | _SIZES | _DROPOUT | _BLOCKS | _LOSS,
    "hstu": _TRAINING | _SIZES | _DROPOUT | _BLOCKS | {"temperature": Span(0.03, 0.3, log=True)} | _LOSS,
}


def searched(model: str, options: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Domain]:
    """The options that tuning varies, with their values.

    Args:
        model: name of the model.
        options: options of the caller. Those that differ from their defaults are not varied.
        base: values of the recipe. ``max_length`` stays within a quarter and twice of it, and cross-entropy is tried
            only if the recipe found it affordable.
    """
    plain = defaults(model)
    found: dict[str, Domain] = {}
    for name, domain in SPACE[model].items():
        if options.get(name, plain[name]) != plain[name]:
            continue
        value = base.get(name)
        if isinstance(domain, Span):
            found[name] = domain if value is None else _widened(domain, value)
            continue
        if name == "max_length" and value is not None:
            domain = tuple(one for one in domain if value / 4 <= one <= 2 * value)
        if name == "ensemble" and value in (None, 1):
            continue
        if name == "loss" and value != "cross-entropy":
            domain = tuple(one for one in domain if one != "cross-entropy")
        found[name] = domain if value is None or value in domain else (*domain, value)
    return found


def base_of(recipe: Recipe, model: str) -> dict[str, Any]:
    """The values of a recipe for everything that it chooses or that tuning may vary."""
    values = {name: recipe.get(name) for name in (*RULES, *SPACE[model])}
    return {name: value for name, value in values.items() if value is not None}


def drawn(trial: Any, space: Mapping[str, Domain], base: Mapping[str, Any]) -> dict[str, Any]:
    """The values of one trial, from an ``optuna.Trial``."""
    found: dict[str, Any] = {}
    for name, domain in space.items():
        if name == "negatives" and found.get("loss", base.get("loss")) == "cross-entropy":
            continue
        if isinstance(domain, Span):
            found[name] = trial.suggest_float(name, domain.least, domain.most, log=domain.log)
        else:
            found[name] = trial.suggest_categorical(name, domain)
    return found


def applied(options: Mapping[str, Any], base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a trial: those of the caller, what the recipe chose, and the values of the trial."""
    rules = {name: value for name, value in base.items() if name in RULES}
    if values.get("ensemble") == 1:  # the recipe may have mixed several kinds
        rules["ensemble_kinds"] = "same"
    return {**options, **rules, **values}


def defaults(model: str) -> dict[str, Any]:
    """The default of every option of a model and of training."""
    kinds = (MODELS[model].Config, TrainConfig)
    return {one.name: None if one.default is MISSING else one.default for kind in kinds for one in fields(kind)}


def _widened(span: Span, value: float) -> Span:
    return Span(min(span.least, value), max(span.most, value), span.log)
