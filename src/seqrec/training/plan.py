"""Configuration, split and model of a fit, checked before anything is written."""

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from rich.console import Console

from seqrec.data.batches import Epoch
from seqrec.data.dataset import Dataset
from seqrec.data.features import vocabulary_of
from seqrec.data.items import ItemTable
from seqrec.data.prepare import PrepareConfig, filters_of
from seqrec.data.split import Histories, Split, SplitConfig
from seqrec.device import own_random_state, pick_device
from seqrec.errors import InputError, RunWarning, TrainingWarning, warn
from seqrec.models import MODELS
from seqrec.models.base import Model
from seqrec.models.features import SIZES, give_features, tables_of
from seqrec.models.transitions import TransitionsConfig
from seqrec.run.config import Refit, RunConfig, fingerprint
from seqrec.run.folder import Run
from seqrec.run.place import Place
from seqrec.run.start import Start
from seqrec.training.additions import choose_constants
from seqrec.training.budget import Budget
from seqrec.training.checks import (
    COPIES,
    build_checked,
    check_passes,
    check_trainable,
    say,
    say_split,
    settle_split,
)
from seqrec.training.config import TrainConfig
from seqrec.training.processes import joined
from seqrec.training.recipe import Recipe, again, choose, facts_of, lines
from seqrec.training.warm import Earlier, lines_of


@dataclass(frozen=True)
class Plan:
    """A fit that is ready to start.

    Args:
        config: configuration of the run, with every default resolved.
        split: split of the dataset.
        model: model with fresh weights.
        recipe: options of the model and of training, with what was chosen from the log.
        start: weights of an earlier run to start from. A run that is resumed keeps its own.
    """

    config: RunConfig
    split: Split
    model: Model
    recipe: Recipe
    start: Start | None = None


def planned(
    dataset: Dataset,
    name: str,
    sizes: Any,
    training: TrainConfig,
    filters: PrepareConfig,
    split_config: SplitConfig,
    refit: Refit = "off",
    budget: Budget | None = None,
    resumed: Place | None = None,
    earlier: Earlier | None = None,
) -> Plan:
    """Settle everything that a fit needs. Options that are None are chosen from the log.

    Args:
        dataset: dataset to fit.
        name: name of the model.
        sizes: config of the model.
        training: options of training.
        filters: filters that the dataset was prepared with.
        split_config: options of the split. If ``split`` is auto or ``keep_seen`` is None, the data decide.
        refit: on what the recipe is trained again after the test.
        budget: time limit, by which options may be chosen.
        resumed: locked place of a run to resume. What was chosen for it is not chosen again.
        earlier: run whose weights training starts from.

    Raises:
        InputError: an option does not fit the data or this machine.
    """
    filters = filters_of(dataset, filters)
    training = _with_divided_items(name, sizes, training)
    split = split_config.apply(dataset)
    split.check()
    is_counted = MODELS[name].COUNTED
    if "category" in MODELS[name].READS:
        sizes = settle_categories(name, sizes, dataset.item_table)
    sizes, learned = settle_features(name, sizes, dataset, None if earlier is None else earlier.shown)
    if isinstance(sizes, TransitionsConfig):
        sizes = choose_constants(sizes, split, settle_split(split, split_config).keep_seen or False, training.seed)
    recipe = Recipe(sizes.resolved(), training)
    if not is_counted:
        begun = begun_configs(resumed) if resumed is not None else ()
        facts = facts_of(split.train, None if budget is None else budget.minutes)
        recipe = again(begun, name, sizes, training) or choose(name, sizes, training, facts)
        recipe = resolved_recipe(recipe, name, split)
        recipe = replace(recipe, reasons=recipe.reasons | learned)
    config = RunConfig(
        model=name,
        model_config=asdict(recipe.sizes),
        num_items=dataset.num_items,
        num_users=dataset.num_users,
        has_timestamps=dataset.has_timestamps,
        fingerprint=fingerprint(dataset),
        prepare=filters,
        split=settle_split(split, split_config),
        training={} if is_counted else asdict(recipe.training),
        refit=refit,
        recipe=recipe.reasons,
    )
    return _with_model(config, dataset, split, recipe, earlier)


def _with_model(config: RunConfig, dataset: Dataset, split: Split, recipe: Recipe, earlier: Earlier | None) -> Plan:
    """The plan of a configuration, with its model and with the weights of an earlier run if it starts from one."""
    start = None
    if earlier is not None and earlier.run is not None:
        start, facts = earlier.start(config, dataset)
        earlier.say_differences(config.prepare, split)
        config = replace(config, init_from=facts)
    elif earlier is not None:  # training is resumed, and the run holds the weights that it started from
        config = replace(config, init_from=earlier.config.init_from)
    model = fresh_model(config, dataset)
    if not model.COUNTED:
        check_passes(model, split.train, recipe.training)
    return Plan(config, split, model, recipe, start)


def _with_divided_items(name: str, sizes: Any, training: TrainConfig) -> TrainConfig:
    """The options as dividing the item table needs them, if it is asked for."""
    if not training.shard_items:
        return training
    from seqrec.training.sharded import checked_options  # imports much of torch that others do not need

    return checked_options(name, sizes, training)


def resolved_recipe(recipe: Recipe, name: str, split: Split) -> Recipe:
    """The recipe of a model with every other default resolved, after checking that it can train."""
    sizes, training = recipe.sizes.resolved(), recipe.training.resolved()
    if recipe.get("time_buckets") and not split.train.dataset.has_timestamps:
        raise InputError(f"time_buckets is {sizes.time_buckets}, but the log has no times; leave it out, or give 0")
    check_trainable(split, training, MODELS[name])
    shown = {"batch_size": training.batch_size, "max_length": sizes.max_length, "windows": training.windows}
    steps = len(Epoch(split.train, seed=0, **shown))
    training = training.resolved_for(MODELS[name].LOSS, split.train.dataset.num_items, steps)
    return replace(recipe, sizes=sizes, training=training)


def say_plan(plan: Plan, console: Console | None) -> None:
    """Say how a log was split and what was chosen from it. Without a console, only warn if its times are ignored."""
    say_split(plan.split, console)
    say(lines(plan.recipe) + lines_of(plan.config) + _left_out(plan), console)


def _left_out(plan: Plan) -> list[str]:
    """Remarks about tables that the model does not learn: of items, if it could; of users, which have no other use."""
    dataset, sizes = plan.split.train.dataset, plan.recipe.sizes
    items, users, said = dataset.item_table, dataset.user_table, []
    if items is not None and getattr(sizes, "features", None) == "":
        known = ["categories"] if items.categories is not None else []
        known += [name for name, kind in items.kinds.items() if kind != "text"]
        said += [f"not learned: the items' {', '.join(known)}; --features all would"] if known else []
    if users is not None and not getattr(sizes, "user_features", None):
        takes = hasattr(sizes, "user_features")
        why = "--user-features all would" if takes else f"{plan.config.model} takes no features of users"
        said += [f"not learned: the users' {', '.join(users.kinds) or 'ids'}; {why}"]
    return said


def opened(init_from: Any, place: Place | None, resume: bool) -> Earlier:
    """The run that training starts from; see :meth:`Earlier.open`."""
    return Earlier.open(init_from, place, begun_configs(place) if resume and place is not None else ())


def begun_configs(place: Place) -> list[RunConfig]:
    """The configurations of the runs in a place that may be resumed. Damaged ones are left out here."""
    found = []
    for folder in (*place.unfinished(), place.folder):
        try:
            found.append(Run(folder).config)
        except InputError:
            continue  # resuming it says what is wrong
    return found


def fresh_model(config: RunConfig, dataset: Dataset) -> Model:
    """The model of a run with the weights that its training starts from."""
    if config.training.get("shard_items"):
        from seqrec.training.sharded import sharded_model

        model = sharded_model(config, joined())
        give_features(model, dataset)  # those of users; those of items are refused
        return model
    copies = COPIES if config.training and pick_device(config.training["device"]).type == "cpu" else 1
    copies += config.refit != "off"  # the model of the first training stays, for evaluations
    copies += bool(config.init_from)
    with own_random_state(torch.device("cpu"), config.training.get("seed", 0)):
        model = build_checked(config.build, config.model, copies)
    most = config.model_config.get("num_categories")
    if most and dataset.item_table is not None:
        codes, _ = dataset.item_table.first_categories(most)
        model.set_categories(torch.from_numpy(codes))
    give_features(model, dataset)
    return model


def settle_categories(name: str, sizes: Any, table: ItemTable | None) -> Any:
    """The config with ``num_categories`` resolved to the number of categories that the model learns.

    Raises:
        InputError: the config asks for categories, but no item has any.
    """
    asked = sizes.num_categories
    if asked != 0 and table is not None and table.categories is not None:
        codes, names = table.first_categories(asked)
        if names:
            several = int((table.categories.list.len() > 1).sum())
            missing = int((codes[1:] == 0).sum())
            said = [f"items with several ({several:,}) count under the first"] if several else []
            said += [f"items without one ({missing:,}) share a vector"] if missing else []
            if said:
                note = f"{name} learns one of {len(names):,} categories per item; {', and '.join(said)}"
                warn(note, TrainingWarning)
            return replace(sizes, num_categories=len(names))
        if asked is None:
            warn(f"{name} learns no categories, because all items have the same", TrainingWarning)
    if asked:
        raise InputError(
            f"num_categories is {asked}, but the items do not differ in their categories; give items with categories "
            "(--items FILE), or set num_categories to 0"
        )
    return replace(sizes, num_categories=0)


def settle_features(name: str, sizes: Any, dataset: Dataset, earlier: str | None = None) -> tuple[Any, dict[str, str]]:
    """The config with the options of features resolved to names of columns, and what is learned of them, in words.

    Args:
        name: name of the model.
        sizes: its config.
        dataset: dataset to fit.
        earlier: folder of the run that training starts from, whose features these are.

    Raises:
        InputError: the config asks for features, but there is no table, or nothing to learn of the columns.
    """
    reasons = {}
    for option, what, table in tables_of(dataset):
        asked = getattr(sizes, option, None)
        if not asked:
            continue
        if table is None:
            if earlier is not None:
                raise _lacking(earlier, what, asked, f"there is no {what} table")
            raise InputError(
                f"{option} is {asked!r}, but there is no {what} table; give {what}s (--{what}s FILE), or leave it out"
            )
        try:
            vocabulary, left_out = vocabulary_of(table, asked)
        except InputError as error:
            if earlier is None:
                raise
            raise _lacking(earlier, what, asked, str(error).rpartition(";")[0]) from None
        counts = dict(zip(SIZES[option], (vocabulary.num_codes, vocabulary.num_values), strict=True))
        sizes = replace(sizes, **{option: ",".join(vocabulary.columns)}, **counts)
        not_learned = [f"{column} ({reason})" for column, reason in left_out.items()]
        said = ", ".join(vocabulary.lines()) + (f"; not {', '.join(not_learned)}" if not_learned else "")
        reasons[option] = f"{name} learns {'of users ' if what == 'user' else ''}{said}"
    return sizes, reasons


def _lacking(earlier: str, what: str, asked: str, reason: str) -> InputError:
    """The error for a table that lacks what the earlier run learned from, which nobody asked for by an option."""
    advice = f"give --{what}s FILE with these columns, or train without init_from"
    return InputError(f"{earlier}: learned from the {what}s' {asked}, but {reason}; {advice}")


def check_tables(run: Run, dataset: Dataset, model: Model) -> None:
    """Compare the tables of items and users of a dataset with those in the run that training resumes.

    Args:
        run: run to resume.
        dataset: dataset that the user gave.
        model: model of the run.

    Raises:
        InputError: two tables differ, and the model learns from them.
    """
    options = run.config.model_config
    for (option, what, kept), (_, _, given) in zip(tables_of(run.dataset), tables_of(dataset), strict=True):
        if (kept is None and given is None) or (
            kept is not None and given is not None and kept.frame.equals(given.frame)
        ):
            continue
        if options.get(option) or (what == "item" and "category" in model.READS):
            raise InputError(
                f"{run.folder}: the run was started with another {what} table; give the same {what}s, or --overwrite"
            )
        warn(f"{run.folder}: the run keeps the {what} table that it was started with", RunWarning)


def counted(model: Model, histories: Histories) -> tuple[list[dict[str, Any]], str]:
    """Train a counted model by counting. Returns the row of ``epochs.csv``, and a summary for people."""
    started = time.perf_counter()
    model.count(histories)
    seconds = max(time.perf_counter() - started, 1e-9)
    tokens = int(histories.lengths.sum())
    rate = {"seconds": seconds, "total_seconds": seconds, "tokens_per_second": tokens / seconds}
    return [{"epoch": 1, "loss": "", **rate}], f"counted {tokens:,} interactions"
