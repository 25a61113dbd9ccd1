"""The command that trains a run again, from its configuration."""

import shlex
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from seqrec.data.prepare import PrepareConfig
from seqrec.data.split import Split, SplitConfig
from seqrec.errors import InputError
from seqrec.models import MODELS
from seqrec.run.config import RunConfig
from seqrec.training.checks import settle_split
from seqrec.training.config import TrainConfig
from seqrec.training.plan import resolved_recipe
from seqrec.training.recipe import Facts, choose, facts_of

_ROUNDS = 8  # an option that was given may change how others are chosen


def command_of(config: RunConfig, out: Path, split: Split | None, epochs: int | None = None) -> str:
    """A command for the shell that trains a run with the same options, on the same log.

    It has the options that seqrec would not choose by itself for this log, without a time limit.

    Args:
        config: configuration of the run.
        out: run folder to name.
        split: split of its dataset; None if it is not known, so that all options are named.
        epochs: number of epochs, if not validation but a time limit ended the training.
    """
    wanted = _values(config)
    if epochs is not None and config.training:
        wanted["epochs"] = epochs
    given = _plain_differences(config, wanted)
    if split is None:
        given |= {name: value for name, value in wanted.items() if value is not None and _default(config, name) is None}
    elif config.training:
        given = _completed(config, split, wanted, given)
    chosen, plain = asdict(config.split), asdict(SplitConfig())
    if split is not None:
        plain = asdict(settle_split(SplitConfig().apply(split.train.dataset), SplitConfig()))
        plain["keep_seen"] = settle_split(split, SplitConfig()).keep_seen
    given |= {name: value for name, value in chosen.items() if value is not None and value != plain[name]}
    given |= {"refit": config.refit} if config.refit != "off" else {}
    flags = [part for name, value in given.items() for part in _flag(name, value)]
    return shlex.join(["seqrec", "fit", "LOG", "--out", str(out), "--model", config.model, *flags])


def _values(config: RunConfig) -> dict[str, Any]:
    return {**config.model_config, **config.training, **asdict(config.prepare)}


def _default(config: RunConfig, name: str) -> Any:
    """The default of an option; None if seqrec chooses it, or if it has none."""
    for kind in (MODELS[config.model].Config, TrainConfig, PrepareConfig):
        for field in fields(kind):
            if field.name == name:
                return field.default
    return None


def _plain_differences(config: RunConfig, wanted: dict[str, Any]) -> dict[str, Any]:
    """The options that differ from a fixed default."""
    found = {}
    for name, value in wanted.items():
        default = _default(config, name)
        chosen_by_log = default is None and config.training and name not in asdict(config.prepare)
        if value is not None and not chosen_by_log and _plain(value) != _plain(default):
            found[name] = value
    return found


def _completed(config: RunConfig, split: Split, wanted: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The options given so far, and those that would otherwise be chosen differently."""
    facts, always = facts_of(split.train), set(given)

    def missing(given: dict[str, Any]) -> dict[str, Any]:
        chosen = _chosen(config, split, facts, given)
        return {
            name: value
            for name, value in wanted.items()
            if name in chosen and value is not None and _plain(chosen[name]) != _plain(value)
        }

    try:
        for _ in range(_ROUNDS):
            if not (new := missing(given)):
                break
            given = given | new
        for name in [name for name in given if name not in always]:  # some follow from others that were added with them
            fewer = {other: value for other, value in given.items() if other != name}
            given = given if missing(fewer) else fewer
    except InputError:  # options that do not fit each other until all are given
        open_ones = {name: v for name, v in wanted.items() if v is not None and _default(config, name) is None}
        return open_ones | given
    return given


def _chosen(config: RunConfig, split: Split, facts: Facts, given: dict[str, Any]) -> dict[str, Any]:
    """All options of the model and of training that seqrec uses if these are given."""
    kind = MODELS[config.model].Config
    of_model, of_training = (
        {name: _tupled(value) for name, value in given.items() if name in {field.name for field in fields(one)}}
        for one in (kind, TrainConfig)
    )
    training = TrainConfig(**{"ensemble_kinds": "same"} | of_training)
    recipe = resolved_recipe(choose(config.model, kind(**of_model), training, facts), config.model, split)
    return {**asdict(recipe.sizes), **asdict(recipe.training)}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _flag(name: str, value: Any) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag] if value else [f"{flag}=false"]
    if isinstance(value, list | tuple):
        return [flag, *map(str, value)]
    return [flag, f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)]
