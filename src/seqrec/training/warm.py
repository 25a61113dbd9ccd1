"""Warm start: training starts from the weights of an earlier run, usually of an older log of the same catalogue.

Options that are not given are those of the earlier run, so that its weights fit. Rows of items, users, categories and
features are found by their ids; those that the earlier run did not know get the usual start, or for items that of their
neighbours.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seqrec.data.dataset import Dataset
from seqrec.data.fields import by_kind, check_fields
from seqrec.data.prepare import PrepareConfig
from seqrec.data.split import Histories, Split, SplitConfig, Targets
from seqrec.errors import InputError, RunWarning, one_line, warn
from seqrec.models import AUTO, MODELS
from seqrec.models.base import Model
from seqrec.models.features import SIZES
from seqrec.run.config import CONFIG, RunConfig
from seqrec.run.folder import METRICS, PARTS, Run
from seqrec.run.place import Place, reading
from seqrec.run.start import Start, row_kinds
from seqrec.run.tensors import read_header
from seqrec.training.additions import constants_of
from seqrec.training.config import TrainConfig
from seqrec.training.matching import changed_vectors, matched
from seqrec.training.start import start_near_neighbours

#: When training stops, unless options say otherwise: the first epochs gain most, and it need not start from nothing.
STOPS = {"patience": 2, "min_gain": 0.005}
#: Options of training that are never taken over: how long, on which machine and with which random numbers to train.
AFRESH = frozenset({
    "epochs", "patience", "min_gain", "evaluate_every", "learning_rate_schedule", "warmup_steps", "device", "threads",
    "seed", "checkpoint_minutes", "shard_items",
})  # fmt: skip
#: Options that belong to a loss, and are taken over only with it.
OF_LOSSES = frozenset({"negatives", "popularity", "calibration", "bpr_penalty", "logq_correction"})
#: Options of models that only training reads. They may be given; all others must be those of the earlier run.
ONLY_TRAINING = frozenset({
    "dropout", "embedding_dropout", "hidden_dropout", "attention_dropout", "l2", "random_start", "sse_user", "sse_item",
    "sse_target", "mask_probability", "last_probability", "num_targets", "num_categories", "id_dropout",
})  # fmt: skip


class Earlier:
    """The run that training starts from.

    Args:
        shown: its folder, as the user gave it.
        config: configuration whose options are taken over.
        run: the run, and its model; None if training is resumed, which needs neither.
        model: its model, with the weights that were trained without held-out items.
    """

    def __init__(self, shown: str, config: RunConfig, run: Run | None = None, model: Model | None = None) -> None:
        self.shown, self.config, self.run, self.model = shown, config, run, model

    @classmethod
    def open(cls, folder: str | Path, place: Place | None, resumed: Sequence[RunConfig] = ()) -> "Earlier":
        """Open the run. If training is resumed, its own configuration is enough.

        Args:
            folder: run folder.
            place: locked place of the run that is written, which may be the same folder.
            resumed: configurations of the runs that may be resumed.

        Raises:
            InputError: the folder is no run, or holds no weights that training could start from.
        """
        shown = str(Path(folder))
        for config in resumed:
            if config.init_from.get("run") == shown:
                return cls(shown, config)

        def read() -> Earlier:
            run = Run(folder)
            if MODELS[run.config.model].COUNTED:
                name = run.config.model
                raise InputError(f"{shown}: is a run of {name}, which counts again in any case; leave out init_from")
            model = run.model("train", mapped=True)
            if not (run.folder / METRICS).exists():
                warn(
                    f"{shown}: its training has not ended; training starts from the best weights that it has saved",
                    RunWarning,
                )
            return cls(shown, run.config, run, model)

        is_own = place is not None and Path(os.path.realpath(shown)) == place.folder  # this process holds its lock
        return read() if is_own else reading(folder, read)

    def options(self, asked: str, given: Mapping[str, Any]) -> tuple[str, Any, TrainConfig]:
        """The model, its config and the options of training: those that are given, and otherwise the earlier run's.

        Args:
            asked: name of the model that the user asked for, or auto.
            given: options that the user gave, by name.

        Raises:
            InputError: the weights of the earlier run do not fit a model of these options.
        """
        name, config = self.config.model, self.config
        if asked not in (AUTO, name):
            raise self._unfit("model", name, asked)
        kinds = (MODELS[name].Config, TrainConfig, PrepareConfig, SplitConfig)
        asked_for = {option: value for option, value in given.items() if value is not None}
        sizes, training, *_ = by_kind(asked_for, kinds, name, also="refit")
        if training.get("shard_items"):
            raise InputError("init_from needs the whole item table in one process; leave out shard_items")
        before = config.model_config | config.training
        fixed = {option: value for option, value in sizes.items() if option not in ONLY_TRAINING}
        fixed |= {option: training[option] for option in ("ensemble", "ensemble_kinds") if option in training}
        try:
            check_fields(TrainConfig, config.training)
            old = kinds[0](**config.model_config)
            new = kinds[0](**config.model_config | self._categories() | sizes)
        except (TypeError, ValueError) as error:
            raise InputError(f"{self.shown}/{CONFIG}: does not fit ({one_line(error)}); leave out init_from") from error
        for option in fixed:
            was, now = before.get(option), getattr(new, option, fixed[option])
            if now != (getattr(old, option) if hasattr(old, option) else was):
                raise self._unfit(option, was, now)
        return name, new, TrainConfig(**self._training(training))

    def _categories(self) -> dict[str, Any]:
        """The number of categories is that of the new log, unless the model learns none."""
        return {"num_categories": None} if self.config.model_config.get("num_categories") else {}

    def _training(self, given: dict[str, Any]) -> dict[str, Any]:
        """The options of training, given those that the user gave."""
        config, left_out = self.config, AFRESH
        if given.get("loss", config.training.get("loss")) != config.training.get("loss"):
            left_out = left_out | OF_LOSSES
        if "learning_rate" in given or "learning_rate" in config.recipe:  # the minutes of that run do not matter here
            left_out = left_out | {"learning_rate", "table_learning_rate"}
        kept = {name: value for name, value in config.training.items() if name not in left_out}
        plain = {"learning_rate": TrainConfig.PLAIN["learning_rate"]} | STOPS
        return plain | kept | given

    def _unfit(self, option: str, was: Any, now: Any) -> InputError:
        return InputError(
            f"{self.shown}: its {option} is {was}, not {now}, so its weights do not fit; leave out {option}, or train "
            "without init_from"
        )

    def start(self, config: RunConfig, dataset: Dataset) -> tuple[Start, dict[str, Any]]:
        """The weights that a model of another run starts from, and what ``config.json`` says of them.

        Args:
            config: configuration of the new run.
            dataset: its dataset.

        Raises:
            InputError: the weights do not fit, or the two runs have no item in common.
        """
        assert self.run is not None
        assert self.model is not None
        kinds, earlier = row_kinds(config), self.run.dataset
        facts: dict[str, Any] = {"run": self.shown, "id": self.run.id}
        path = self.run.weights_path("train")
        facts["checksum"] = read_header(path).check_mark(self.run.id, PARTS["train"]).get("crc32")
        if self.model.addition is not None:
            has_timestamps = self.config.has_timestamps and dataset.has_timestamps
            facts["constants"] = constants_of(self.model.addition, has_timestamps)
            facts["weight"] = self.model.addition.weight
        rows: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for kind in sorted({*kinds.values()}):
            rows[kind], facts[kind] = matched(kind, earlier, dataset, self.config, config)
        if not facts.get("items", {"kept": 1})["kept"]:
            raise InputError(
                f"{self.shown}: knows none of the items of this log ({_some(earlier.item_ids)} there, "
                f"{_some(dataset.item_ids)} here); give a run of the same catalogue, or leave out init_from"
            )
        if changed := changed_vectors(earlier, dataset, config):
            warn(
                f"{self.shown}: its items or users had other vectors ({changed}), so what was learned of them may not "
                "hold; train without init_from if they come from elsewhere",
                RunWarning,
            )
        weights, old = {}, dict(self.model.named_parameters())
        for name, weight in config.outline(len(old)).named_parameters():
            there, first = old.get(name), int(name in kinds)
            if there is None or there.shape[first:] != weight.shape[first:] or there.dtype != weight.dtype:
                sizes = [None if one is None else list(one.shape) for one in (there, weight)]
                raise InputError(
                    f"{self.shown}: its weights do not fit ({name} is {sizes[0]} there, {sizes[1]} here); give the "
                    "options and items of that run, or leave out init_from"
                )
            weights[name] = there.detach()[rows[kinds[name]][1]] if name in kinds else there.detach()
        return Start(weights, {kind: places[0] for kind, places in rows.items()}, kinds), facts

    def say_differences(self, filters: PrepareConfig, split: Split) -> None:
        """Warn if the two logs were filtered differently, or if the earlier run was trained on held-out items."""
        if self.run is None:
            return
        before, now = asdict(self.config.prepare), asdict(filters)
        found = [f"{name} {before[name]} there, {now[name]} here" for name in before if before[name] != now[name]]
        if found:
            warn(f"{self.shown}: its log was filtered differently ({'; '.join(found)})", RunWarning)
        trained = _Seen(self.run)
        for targets, name in ((split.valid, "validation"), (split.test, "test")):
            known = trained.count(targets)
            if known:
                warn(
                    f"{known:,} of {len(targets):,} {name} items were in the histories that {self.shown} was trained "
                    f"on, so figures of the {name} are too high; give later cut points (--valid-from, --test-from), or "
                    "a run that was trained on less",
                    RunWarning,
                )


class _Seen:
    """How often users of a run met an item in its training histories."""

    def __init__(self, run: Run) -> None:
        self.dataset = run.dataset
        train = run.split.train
        rows, items = train.flat()
        self.keys, self.counts = np.unique(self._key(train.users[rows], items), return_counts=True)

    def _key(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        return users.astype(np.int64) * (self.dataset.num_items + 1) + items

    def count(self, targets: Targets) -> int:
        """Number of targets that were trained on: met more often there than in the histories before them."""
        histories = targets.histories
        if len(targets) == 0:
            return 0
        rows, items = histories.flat()
        before = np.bincount(rows[items == targets.items[rows]], minlength=len(targets))
        users = self.dataset.user_indices(histories.dataset.user_ids)[histories.users]
        known = np.concatenate([[0], self.dataset.item_indices(histories.dataset.item_ids)])[targets.items]
        keys = self._key(users, known)
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        met = np.where((self.keys[places] == keys) & (users >= 0) & (known > 0), self.counts[places], 0)
        return int(np.count_nonzero(met > before))


def begin_from(start: Start, model: Model, histories: Histories, near_neighbours: bool) -> None:
    """Give a model with fresh weights those of an earlier run.

    Args:
        start: weights of the earlier run.
        model: model that will be trained.
        histories: training histories.
        near_neighbours: whether new items start near the items that they occur with, instead of at random.
    """
    tables = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in start.weights.items():
            table, kind = tables[name], start.kinds.get(name)
            if kind is None:
                table.copy_(weight)
                continue
            rows = start.rows[kind]
            if kind == "users":  # a row of zeros was never trained
                trained = weight.any(dim=1)
                rows, weight = rows[trained], weight[trained]
            table[rows.to(table.device)] = weight.to(table.device)
    if near_neighbours:
        known = np.zeros(model.num_items + 1, dtype=bool)
        known[start.rows["items"].numpy()] = True
        chosen = [tables[name] for name, kind in start.kinds.items() if kind == "items" and tables[name].shape[1] > 1]
        start_near_neighbours(chosen, known, histories)


def lines_of(config: RunConfig) -> list[str]:
    """What a run took over from an earlier one, for people."""
    facts = config.init_from
    if not facts:
        return []
    sizes = ", ".join(
        f"{name} {' '.join(map(str, value)) if isinstance(value, list | tuple) else value}"
        for name, value in config.model_config.items()
        if value and name not in {*chain.from_iterable(SIZES.values())}
    )
    kinds = [
        f"{kind.replace('_', ' ')}: " + ", ".join(f"{facts[kind][part]:,} {part}" for part in ("kept", "new", "gone"))
        for kind in ("items", "users", "categories", *SIZES)
        if kind in facts
    ]
    patience, gain = (config.training[name] for name in ("patience", "min_gain"))
    better = "a better NDCG@10 (--patience)"
    if gain:
        better = f"an NDCG@10 that is {100 * gain:g} % better (--patience, --min-gain)"
    stops = f"training stops after {patience} validation{'s' * (patience != 1)} without {better}"
    return [f"starting from {facts['run']}: {config.label}, {sizes}", *(f"  {line}" for line in (*kinds, stops))]


def _some(ids: Any) -> str:
    """The first id or two, for an error message."""
    return ", ".join(str(one)[:40] for one in ids[:2].to_list())
