"""The result of a comparison: its entries, tables and files."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from seqrec.data.split import TRAINED
from seqrec.files import replacing
from seqrec.models import MODELS
from seqrec.ranking import metrics
from seqrec.ranking.protocols import Protocol
from seqrec.report.tables import groups_side_by_side, with_interval
from seqrec.tools.config import CompareConfig

if TYPE_CHECKING:
    from seqrec.report.pictures import Drawn

PROTOCOLS: tuple[Protocol, ...] = ("full", "sampled")
METRICS = (*metrics.MAIN, "mrr")
TESTED = "ndcg@10"
_INTERVALS = (
    "(Agresti & Coull 1998, with the number of users that corresponds to the variance; for the difference Newcombe "
    "1998, from two such intervals)"
)
_HOLM = "p_holm: adjusted for the number of models (Holm 1979), separately for each protocol"
METHOD = (
    f"intervals: 95 %, over users {_INTERVALS}; p: two-sided paired t-test over users of the difference in {TESTED} "
    f"from the reference; {_HOLM}; intervals and p do not include the variation between trainings of the same model"
)
METHOD_OF_SEEDS = (
    f"metrics: means over trainings with different seeds; intervals: 95 %, over users and trainings: that over users "
    f"{_INTERVALS}, widened by the variance between trainings divided by their number (crossed samples, Owen & Eckles "
    "2012), with the bound of Student's t from both (Cochran & Cox 1950); p: two-sided t-test of the difference in "
    f"{TESTED} from the reference, paired over users, with the variance between the trainings of both models (Welch "
    f"1947) and the same bound; {_HOLM}; counted models are trained once; the intervals of a trained model with only "
    "one finished training do not include the variation between trainings"
)
METHOD_OF_ORDER = (
    "shuffled: trained and tested on histories whose items are in random order, with the same targets and candidates "
    f"(after Klenitskiy et al. 2024); lost: the share of {TESTED} that is lost, with the interval of Fieller 1954; p: "
    "of the difference from histories in order, as above and not adjusted"
)


@dataclass
class Training:
    """One training of a model.

    Args:
        seed: seed of its random numbers.
        how: summary of how it ended.
        seconds: time that fitting took, including validation.
        epochs: number of trained epochs; None for a counted model.
        transitions: weight of the transition counts that are added to the scores; None if none were tried.
        metrics: for each protocol, the means over users.
    """

    seed: int
    how: str
    seconds: float
    epochs: int | None
    transitions: float | None
    metrics: dict[str, dict[str, float]]


@dataclass
class Entry:
    """One model of a comparison.

    Args:
        model: name of the model.
        failed: reason why it has no results, or not those of all seeds; None if it has.
        how: summary of how the latest training ended.
        seconds: time that fitting took, including validation; the mean over trainings.
        epochs: number of trained epochs, the rounded mean over trainings; None for a counted model.
        parameters: number of trained weights.
        bytes: size of all weights in a run folder, including counts.
        config: options of the model, with what was chosen from the log.
        training: options of its training, in the same way, with the first seed; empty for a counted model.
        recipe: reasons of the choice, by option.
        transitions: weight of the transition counts that are added to the scores, the mean over trainings; None if none
            were tried.
        results: for each protocol ``metrics`` and their ``intervals``, ``groups`` of users, and compared with the
            reference ``difference`` (of the NDCG@10), ``difference_interval``, ``p`` and ``p_holm``, which are None for
            the reference itself.
        trainings: each finished training.
        shuffled: the same for histories in random order, if that was asked for and the model is trained. Its results
            have, instead of what is compared with the reference, ``lost``, the share of the NDCG@10 that the order was
            worth, ``lost_interval`` (None if it has no ends) and ``p`` of the difference from histories in order.
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
    trainings: list[Training] = field(default_factory=list)
    shuffled: "Entry | None" = None

    @property
    def label(self) -> str:
        """The name of what is ranked with."""
        return f"{self.model} + transitions" if self.transitions else self.model

    @property
    def outcome(self) -> str:
        """The outcome of the latest training as text."""
        return f"failed: {self.failed}" if self.failed else f"{self.how}, {_time(self.trainings[-1].seconds)}"

    @property
    def facts(self) -> str:
        """Epochs, time and weights as text, on two lines."""
        trained = "counted" if self.epochs is None else f"{self.epochs} epoch{'s' * (self.epochs != 1)}"
        if len(self.trainings) > 1:
            trained = f"{len(self.trainings)} × {trained}"
        size = f"{_short(self.parameters or 0).rstrip()}, {_short(self.bytes or 0)}B"
        return f"{trained}, {_time(self.seconds or 0)}\n{size}"

    def add(self, training: Training) -> None:
        """Add a finished training."""
        self.trainings.append(training)
        count = len(self.trainings)
        self.how, self.seconds = training.how, sum(one.seconds for one in self.trainings) / count
        if training.epochs is not None:
            self.epochs = round(sum(one.epochs or 0 for one in self.trainings) / count)
        if training.transitions is not None:
            self.transitions = sum(one.transitions or 0.0 for one in self.trainings) / count


@dataclass
class Comparison:
    """The result of :func:`compare_models`.

    Args:
        entries: one entry per model, in the given order.
        users: number of users in the test.
        held_out: what they are tested on, in a few words; no model is trained on validation or test items.
        split: what the check of the split found, as in ``metrics.json``.
        training: training options that all models were given, with the first seed; None is chosen for each.
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

    @property
    def seeds(self) -> range:
        """The seeds of the trainings."""
        first: int = self.training["seed"]
        return range(first, first + self.config.seeds)

    @property
    def method(self) -> str:
        """What the intervals and p-values are and include."""
        method = METHOD if self.config.seeds == 1 else METHOD_OF_SEEDS
        return f"{method}; {METHOD_OF_ORDER}" if self.config.shuffled else method

    def entry(self, model: str) -> Entry:
        """The entry of a model, which is added if there is none yet."""
        found = next((entry for entry in self.entries if entry.model == model), None)
        if found is None:
            found = Entry(model)
            self.entries.append(found)
        return found

    def to_dict(self) -> dict[str, Any]:
        """The content of ``compare.json``."""
        found = asdict(self)
        entries = found.pop("entries")
        return found | found.pop("config") | {"tested": TESTED, "method": self.method, "models": entries}

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
                row |= {n: getattr(entry, n) for n in ("seconds", "epochs", "parameters", "bytes", "failed")}
                rows.append(row | {"trainings": len(entry.trainings)} | self._order_row(entry, protocol))
        texts, integers = ("model", "protocol", "failed"), ("users", "epochs", "parameters", "bytes", "trainings")
        schema = {n: pl.String if n in texts else pl.Int64 if n in integers else pl.Float64 for n in rows[0]}
        return pl.DataFrame(rows, schema=schema)

    def _order_row(self, entry: Entry, protocol: Protocol) -> dict[str, Any]:
        """The columns about shuffled histories, if they were asked for."""
        if not self.config.shuffled:
            return {}
        result = ((entry.shuffled and entry.shuffled.results) or {}).get(protocol)
        low, high = (result and result["lost_interval"]) or (None, None)
        found = {f"shuffled_{TESTED}": result["metrics"][TESTED] if result else None}
        return found | {"lost": result and result["lost"], "lost_low": low, "lost_high": high}

    def tables(self) -> list[Table]:
        """The tables for a terminal: all models, groups of users, and what the order is worth if that was asked for."""
        found = [self.table()]
        groups = {entry.label: entry.results["full"]["groups"] for entry in self.entries if entry.results}
        if groups:
            found.append(groups_side_by_side("test, full ranking", groups))
        if any(entry.shuffled is not None and entry.shuffled.results for entry in self.entries):
            found.append(self._order_table())
        return found

    def table(self) -> Table:
        """A table of all models with both protocols, each metric with its interval."""
        seen = "kept" if self.keep_seen else "removed"
        grid = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        against = f"against {self.config.test_negatives} negatives"
        first, last = self.seeds[0], self.seeds[-1]
        seeds = f"seed {first}" if first == last else f"seeds {first} to {last}"
        grid.title = (
            f"test: {self.users:,} users; full (seen items {seen}), sampled ({against})\n"
            f"{self.held_out}; trained {TRAINED['train']}; {seeds}"
        )
        grid.add_column("model, training,\nweights", overflow="fold")
        for name in ("protocol", "NDCG@10", "HR@10", "gain", "p"):
            grid.add_column(name, justify="left" if name == "protocol" else "right", no_wrap=True)
        for entry in self.entries:
            if entry.results is None:
                grid.add_row(entry.model, "failed")
                continue
            cells: list[list[str]] = [list(PROTOCOLS), *([] for _ in range(4))]
            for result in entry.results.values():
                for cell, name in zip(cells[1:3], metrics.MAIN, strict=True):
                    cell.append(with_interval(result["metrics"][name], *result["intervals"][name]))
                cells[3].append("" if result["difference"] is None else f"{result['difference']:+.4f}")
                cells[4].append(_p(result["p_holm"]))
            grid.add_row(f"{entry.label}\n{entry.facts}", *("\n".join(cell) for cell in cells))
        grid.caption = escape("\n".join(self._notes()))
        return grid

    def _notes(self) -> list[str]:
        """What the main table says below its rows."""
        test = "paired t-test over users" if self.config.seeds == 1 else "t-test over users and trainings"
        notes = [f"gain, p: in NDCG@10 over {self.reference}; {test}, Holm's correction"]
        if self.config.seeds > 1:
            notes.append("means over trainings; 95 % intervals over users and trainings")
        for entry in self.entries:
            if entry.failed:
                notes.append(f"{entry.model} failed: {entry.failed}")
            if entry.shuffled is not None and entry.shuffled.failed:
                notes.append(f"{entry.model}, shuffled, failed: {entry.shuffled.failed}")
            finished, is_trained = len(entry.trainings), not MODELS[entry.model].COUNTED
            if entry.results and is_trained and finished < self.config.seeds:
                notes.append(f"{entry.model}: {finished} of {self.config.seeds} trainings")
                if finished == 1:
                    notes[-1] += ", so its intervals are over users only"
        return notes

    def _order_table(self) -> Table:
        """What the order is worth for each trained model."""
        grid = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        grid.title = "what order is worth: NDCG@10 of histories in order and in random order"
        grid.add_column("model", overflow="fold")
        for name in ("protocol", "in order", "shuffled", "lost"):
            grid.add_column(name, justify="left" if name == "protocol" else "right", no_wrap=True)
        for entry in self.entries:
            other = entry.shuffled
            if other is None or entry.results is None or other.results is None:
                continue
            cells: list[list[str]] = [list(PROTOCOLS), [], [], []]
            for protocol in PROTOCOLS:
                ordered, shuffled = entry.results[protocol], other.results[protocol]
                for cell, result in ((cells[1], ordered), (cells[2], shuffled)):
                    cell.append(with_interval(result["metrics"][TESTED], *result["intervals"][TESTED]))
                cells[3].append(_lost(shuffled["lost"], shuffled["lost_interval"]))
            grid.add_row(entry.label, *("\n".join(cell) for cell in cells))
        over = "users" if self.config.seeds == 1 else "users and trainings"
        grid.caption = f"lost: share of the NDCG@10 in order, 95 % over {over}; shuffled: in training and test"
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
        panels = {titles[protocol]: self._drawn(protocol) for protocol in PROTOCOLS}
        over = "users" if self.config.seeds == 1 else "users and trainings"
        comparison_picture(panels, folder / "compare.png", f"NDCG@10\n95 % over {over}")

    def _drawn(self, protocol: Protocol) -> "list[Drawn]":
        """The rows of a panel of ``compare.png``: each model, and below it the same without order."""
        from seqrec.report.pictures import Drawn

        rows = []
        for entry in self.entries:
            for one, label in ((entry, entry.label), (entry.shuffled, f"{entry.model}, shuffled")):
                if one is None or one.results is None:
                    continue
                result = one.results[protocol]
                low, high = result["intervals"][TESTED]
                single = [training.metrics[protocol][TESTED] for training in one.trainings]
                points = single if len(single) > 1 else []
                rows.append(Drawn(label, result["metrics"][TESTED], low, high, points, one is entry))
        return rows


def _lost(share: float | None, ends: Sequence[float] | None) -> str:
    """A share with its interval: ``12.3 % (8.1 to 16.2)``."""
    if share is None:
        return "unknown"
    return f"{100 * share:.1f} % " + ("(unknown)" if ends is None else f"({100 * ends[0]:.1f} to {100 * ends[1]:.1f})")


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
