"""Compare several models on one log, with the same budget and the same candidates, and test the differences."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from seqrec.data.dataset import Dataset
from seqrec.data.prepare import PrepareConfig
from seqrec.data.split import TRAINED, Split, SplitConfig
from seqrec.errors import InputError
from seqrec.files import make_folder, replacing
from seqrec.models import MODELS
from seqrec.ranking import metrics, statistics
from seqrec.ranking.additions import recounted
from seqrec.ranking.protocols import Protocol, ranks
from seqrec.recommender import Recommender
from seqrec.report.tables import with_interval
from seqrec.tools.config import CompareConfig
from seqrec.training.checks import say_split, settle_split
from seqrec.training.config import TrainConfig

PROTOCOLS: tuple[Protocol, ...] = ("full", "sampled")
METRICS = (*metrics.MAIN, "mrr")
TESTED = "ndcg@10"
NOT_TRAINED = "not trained, because the comparison was interrupted"
METHOD = (
    "intervals: 95 %, over users (Agresti & Coull 1998, with the number of users that corresponds to the variance; for "
    "the difference Newcombe 1998, from two such intervals); p: two-sided paired t-test over users of the difference "
    f"in {TESTED} from the reference; p_holm: adjusted for the number of models (Holm 1979), separately for each "
    "protocol; intervals and p do not include the variation between trainings of the same model"
)


@dataclass
class Entry:
    """One model of a comparison.

    Args:
        model: name of the model.
        failed: reason why it has no results, or None.
        how: summary of how training ended.
        seconds: time that fitting took, including validation.
        epochs: number of trained epochs; None for a counted model.
        parameters: number of trained weights.
        bytes: size of all weights in a run folder, including counts.
        config: options of the model, with what was chosen from the log.
        training: options of its training, in the same way; empty for a counted model.
        recipe: reasons of the choice, by option.
        transitions: weight of the transition counts that are added to the scores; None if none were tried.
        results: for each protocol ``metrics`` and their ``intervals``, and compared with the reference ``difference``
            (of the NDCG@10), ``difference_interval``, ``p`` and ``p_holm``, which are None for the reference itself.
    """

    model: str
    failed: str | None = None
    how: str | None = None
    seconds: float | None = None
    epochs: int | None = None
    parameters: int | None = None
    bytes: int | None = None
    config: dict[str, Any] | None = None
    training: dict[str, Any] | None = None
    recipe: dict[str, str] | None = None
    transitions: float | None = None
    results: dict[str, dict[str, Any]] | None = None

    @property
    def label(self) -> str:
        """The name of what is ranked with."""
        return f"{self.model} + transitions" if self.transitions else self.model

    @property
    def outcome(self) -> str:
        """The outcome as text."""
        return f"failed: {self.failed}" if self.failed else f"{self.how}, {_time(self.seconds or 0)}"


@dataclass
class Comparison:
    """The result of :func:`compare_models`.

    Args:
        entries: one entry per model, in the given order.
        users: number of users in the test.
        held_out: what they are tested on, in a few words; no model is trained on validation or test items.
        split: what the check of the split found, as in ``metrics.json``.
        training: training options that all models were given; None is chosen for each.
        config: other terms that are the same for all models.
        keep_seen: whether items of the history stayed in the full ranking, in test and validation.
        reference: first model that could be trained. All others are tested against it.
        interrupted: whether the user interrupted the comparison.
    """

    entries: list[Entry]
    users: int
    held_out: str
    split: dict[str, Any]
    training: dict[str, Any]
    config: CompareConfig
    keep_seen: bool = False
    reference: str | None = None
    interrupted: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The content of ``compare.json``."""
        found = asdict(self)
        entries = found.pop("entries")
        return found | found.pop("config") | {"tested": TESTED, "method": METHOD, "models": entries}

    def frame(self) -> pl.DataFrame:
        """One row per model and protocol, as in ``compare.csv``. A failed model has only the reason."""
        rows = []
        for entry in self.entries:
            for protocol in PROTOCOLS:
                result = (entry.results or {}).get(protocol)
                row: dict[str, Any] = {"model": entry.model, "protocol": protocol, "users": self.users}
                for name in METRICS:
                    low, high = result["intervals"][name] if result else (None, None)
                    row |= {name: result["metrics"][name] if result else None}
                    row |= {f"{name}_low": low, f"{name}_high": high}
                low, high = (result and result["difference_interval"]) or (None, None)
                row |= {"difference": result and result["difference"], "difference_low": low, "difference_high": high}
                row |= {name: result and result[name] for name in ("p", "p_holm")}
                rows.append(
                    row | {n: getattr(entry, n) for n in ("seconds", "epochs", "parameters", "bytes", "failed")}
                )
        texts, integers = ("model", "protocol", "failed"), ("users", "epochs", "parameters", "bytes")
        schema = {n: pl.String if n in texts else pl.Int64 if n in integers else pl.Float64 for n in rows[0]}
        return pl.DataFrame(rows, schema=schema)

    def table(self) -> Table:
        """A table of all models with both protocols, each metric with its interval."""
        seen = "kept" if self.keep_seen else "removed"
        grid = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        against = f"against {self.config.test_negatives} negatives"
        grid.title = (
            f"test: {self.users:,} users; full (seen items {seen}), sampled ({against})\n"
            f"{self.held_out}; trained {TRAINED['train']}; seed {self.training['seed']}"
        )
        grid.add_column("model, training,\nweights", overflow="fold")
        for name in ("protocol", "NDCG@10", "HR@10", "gain", "p"):
            grid.add_column(name, justify="left" if name == "protocol" else "right", no_wrap=True)
        for entry in self.entries:
            if entry.results is None:
                grid.add_row(entry.model, "failed")
                continue
            trained = "counted" if entry.epochs is None else f"{entry.epochs} epoch{'s' * (entry.epochs != 1)}"
            cells: list[list[str]] = [list(PROTOCOLS), *([] for _ in range(4))]
            for result in entry.results.values():
                for cell, name in zip(cells[1:3], metrics.MAIN, strict=True):
                    cell.append(with_interval(result["metrics"][name], *result["intervals"][name]))
                cells[3].append("" if result["difference"] is None else f"{result['difference']:+.4f}")
                cells[4].append(_p(result["p_holm"]))
            size = f"{_short(entry.parameters or 0).rstrip()}, {_short(entry.bytes or 0)}B"
            facts = [entry.label, f"{trained}, {_time(entry.seconds or 0)}", size]
            grid.add_row("\n".join(facts), *("\n".join(cell) for cell in cells))
        notes = [f"gain, p: in NDCG@10 over {self.reference}; paired t-test over users, Holm's correction"]
        notes += [f"{entry.model} failed: {entry.failed}" for entry in self.entries if entry.failed]
        grid.caption = escape("\n".join(notes))
        return grid

    def write(self, folder: str | Path) -> None:
        """Write ``compare.json``, ``compare.csv`` and ``compare.png``, each completely or not at all."""
        from seqrec.report.pictures import comparison_picture  # imports matplotlib

        folder = Path(folder)
        with replacing(folder / "compare.json") as new:
            new.write_text(json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        with replacing(folder / "compare.csv") as new:
            self.frame().write_csv(new)
        titles = {"full": "full ranking", "sampled": f"against {self.config.test_negatives} negatives"}
        panels = {
            titles[protocol]: [
                (entry.label, result["metrics"][TESTED], *result["intervals"][TESTED])
                for entry in self.entries
                if entry.results and (result := entry.results[protocol])
            ]
            for protocol in PROTOCOLS
        }
        comparison_picture(panels, folder / "compare.png")


def compare_models(
    dataset: Dataset,
    models: Sequence[str],
    config: CompareConfig | None = None,
    *,
    out: str | Path | None = None,
    progress: bool = False,
    console: Console | None = None,
    **options: Any,
) -> Comparison:
    """Train models one after another on the same data, and rank the same candidates with all of them.

    If a model fails, its entry has the reason, and the comparison continues. Models are not kept, only their metrics.

    As in :meth:`Recommender.fit`, transition counts are added to the scores of trained models where that helps on
    validation items; ``transitions="off"`` compares the models alone.

    Args:
        dataset: dataset that all models are trained and tested on.
        models: names of models in ``seqrec.MODELS``. The others are tested against the first.
        config: terms that are the same for all models.
        out: folder for ``compare.json``, ``compare.csv`` and ``compare.png``. They are rewritten after each model, so
            that a crash loses only one model.
        progress: show a progress bar.
        console: console for the outcome of each model.
        options: options of :class:`Recommender`. An option that only some models have applies to those.

    Raises:
        InputError: a model or option is unknown, there is no user to test on, or no model could be trained.
    """
    config = config or CompareConfig()
    sizes = {name: getattr(config, name) for name in ("embedding_dim", "max_length") if getattr(config, name)}
    chosen = _options(models, sizes | options)
    plan = Recommender(models[0], **{k: v for k, v in chosen[models[0]].items() if k in _common()})
    found, split, same = _planned(plan, dataset, config, console)
    console = console or Console(quiet=True)
    made = out is not None and make_folder(Path(out))
    values: dict[str, dict[str, np.ndarray]] = {}
    for number, name in enumerate(models, start=1):
        entry = Entry(name)
        found.entries.append(entry)
        console.print(f"{name} …", highlight=False)
        scored = _tried(found, entry, dataset, split, chosen[name] | same, progress)
        if scored is not None:
            values[name] = scored
            _judge(found, values)
        console.print(f"{name}: {entry.outcome}", highlight=False, markup=False, soft_wrap=True)
        if found.interrupted:
            found.entries += [Entry(other, failed=NOT_TRAINED) for other in models[number:]]
        if out is not None and values:
            found.write(out)
        if found.interrupted:
            break
    if not values and made:
        Path(out or "").rmdir()
    if not values and not found.interrupted:
        raise InputError("; ".join(f"{entry.model}: {entry.failed}" for entry in found.entries))
    return found


def _planned(
    plan: Recommender, dataset: Dataset, config: CompareConfig, console: Console | None
) -> tuple[Comparison, Split, dict[str, Any]]:
    """A comparison without models yet, its split, and the options that all models share so that they get the same."""
    split = plan.split_config.apply(dataset)
    targets = split.test
    if len(targets) == 0:
        raise InputError("there is no user to test on: nobody has a target; give a longer log or another split")
    say_split(split, console)
    settled = settle_split(split, plan.split_config)
    facts = (len(targets), targets.held_out, asdict(split.check()), asdict(plan.train_config), config)
    same = {"split": settled.split, "keep_seen": settled.keep_seen}
    return Comparison([], *facts, bool(settled.keep_seen)), split, same


def _tried(
    found: Comparison, entry: Entry, dataset: Dataset, split: Split, options: Mapping[str, Any], progress: bool
) -> dict[str, np.ndarray] | None:
    """Train one model and rank with it. Returns None if it failed or was interrupted; its entry has the reason."""
    config = found.config
    try:
        recommender = _fit(entry, dataset, options, config.minutes, progress)
        if not recommender.interrupted:
            return _values(recommender, split, config, found.keep_seen, found.training["seed"])
        found.interrupted = True
        entry.failed = "its training was interrupted"
    except (InputError, RuntimeError, ValueError, ArithmeticError, MemoryError) as error:
        # If one model does not fit this log or machine, the results of the others must not be lost.
        kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        entry.failed = f"{kind}{' '.join(str(error).split())}"
    return None


def _common() -> set[str]:
    """The names of options that do not belong to a model."""
    return {field.name for kind in (TrainConfig, PrepareConfig, SplitConfig) for field in fields(kind)}


def _options(models: Sequence[str], options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The options of each model, selected from the options for all."""
    if not models:
        raise InputError("no model given; name at least one")
    twice = sorted({name for name in models if models.count(name) > 1})
    if twice:
        raise InputError(f"{twice[0]} is named twice; name each model once")
    chosen = {}
    for name in models:
        if name not in MODELS:
            raise InputError(f"unknown model {name!r}; choose one of {', '.join(MODELS)}")
        known = _common() | {field.name for field in fields(MODELS[name].Config)}
        chosen[name] = {key: value for key, value in options.items() if key in known}
    unknown = sorted(set(options) - set().union(*chosen.values()))
    if unknown:
        raise InputError(f"none of {', '.join(models)} has an option {unknown[0]!r}; leave it out")
    return chosen


def _fit(
    entry: Entry, dataset: Dataset, options: Mapping[str, Any], minutes: float | None, progress: bool
) -> Recommender:
    recommender = Recommender(entry.model, **options)
    entry.config = asdict(recommender.model_config)
    begin = time.monotonic()
    recommender.fit(dataset, progress=progress, minutes=minutes)
    if (used := recommender._config) is not None:
        entry.config, entry.training, entry.recipe = used.model_config, used.training, used.recipe
    entry.seconds = time.monotonic() - begin
    entry.how = recommender.summary
    entry.epochs = None if recommender.model.COUNTED else len(recommender.epochs)
    entry.parameters = sum(weight.numel() for weight in recommender.model.parameters())
    addition = recommender.model.addition
    entry.transitions = None if addition is None else addition.weight
    entry.bytes = sum(weight.numel() * weight.element_size() for weight in recommender.model.state_dict().values())
    return recommender


def _values(
    recommender: Recommender, split: Split, config: CompareConfig, keep_seen: bool, seed: int
) -> dict[str, np.ndarray]:
    """The metrics of each user by protocol, ``float64[U, len(METRICS)]``."""
    # The counts of the recommender are of the whole log.
    model = recounted(recommender.model, split.train)
    found: dict[str, np.ndarray] = {}
    more: dict[str, Any] = {"negatives": config.test_negatives, "keep_seen": keep_seen, "seed": seed}
    for protocol in PROTOCOLS:
        greater, ties = ranks(model, split.test, protocol=protocol, **more)
        found[protocol] = np.column_stack([metrics.named(name, greater, ties) for name in METRICS])
    return found


def _judge(found: Comparison, values: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Fill in the results of all models so far. Each new model changes the Holm correction of the others."""
    names = list(values)
    found.reference = names[0]
    results: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in names}
    tested = METRICS.index(TESTED)
    for protocol in PROTOCOLS:
        blocks = [values[name][protocol] for name in names]
        differences = np.column_stack([block[:, tested] - blocks[0][:, tested] for block in blocks])
        columns = np.column_stack(blocks)
        means = statistics.mean(np.column_stack([columns, differences])).tolist()
        ends = [
            *statistics.gain_intervals(columns).tolist(),
            *statistics.difference_intervals(differences).tolist(),
        ]
        p = statistics.paired_t_test(differences[:, 1:])
        adjusted = statistics.holm(p)
        for number, name in enumerate(names):
            first, last = number * len(METRICS), len(blocks) * len(METRICS) + number
            results[name][protocol] = {
                "metrics": dict(zip(METRICS, means[first:], strict=False)),
                "intervals": dict(zip(METRICS, ends[first:], strict=False)),
                "difference": means[last] if number else None,
                "difference_interval": ends[last] if number else None,
                "p": float(p[number - 1]) if number else None,
                "p_holm": float(adjusted[number - 1]) if number else None,
            }
    for entry in found.entries:
        if entry.model in results:
            entry.results = results[entry.model]


def _p(value: float | None) -> str:
    return "" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"


def _short(count: float) -> str:
    """A number with a unit prefix: 1234567 as ``1.2 M``."""
    if count < 1000:
        return f"{count:g} "
    for unit in ("k", "M"):
        count /= 1000
        if count < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} G"
