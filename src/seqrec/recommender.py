"""The public face: fit, recommend, evaluate, save, load."""

import shutil
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing, nullcontext
from dataclasses import asdict, fields
from itertools import pairwise, takewhile
from os import PathLike
from pathlib import Path
from traceback import walk_stack
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from rich.console import Console
from rich.progress import track

from seqrec.data.batches import histories_of
from seqrec.data.prepare import Dataset, PrepareConfig, prepare
from seqrec.data.read import read_log
from seqrec.data.split import Histories, Split, all_histories
from seqrec.errors import InputError, one_line
from seqrec.evaluate import Evaluation, evaluate
from seqrec.files import kept_aside, write_frames
from seqrec.models import MODELS
from seqrec.models.base import Model
from seqrec.run import CONFIG, Run, RunConfig, SplitConfig, build_model, check_free, fingerprint
from seqrec.threads import threads
from seqrec.topk import USERS_AT_ONCE, check_k, most_popular, nearest, ranked
from seqrec.train import RESUMABLE, TrainConfig, check_trainable, train

BLOCK = 2 * USERS_AT_ONCE  # people a frame: whole groups of those scored together, or the last bits would differ


class UnknownIdWarning(UserWarning):
    """A user or an item that the run does not know was asked for."""


class Recommender:
    """A model with the data it was trained on, from a log to recommendations.

    Example:
        >>> recommender = Recommender("sasrec", embedding_dim=64, epochs=10).fit("interactions.csv")
        >>> recommender.recommend(users=["anna"], k=10)  # doctest: +SKIP

    Args:
        model: a name of ``seqrec.MODELS``.
        options: any field of the model's config (:class:`SASRecConfig`), of :class:`TrainConfig`, of
            :class:`PrepareConfig` and of :class:`SplitConfig`, by name.

    Raises:
        InputError: an unknown model or option, or a value out of range.
    """

    def __init__(self, model: str = "sasrec", **options: Any) -> None:
        if model not in MODELS:
            raise InputError(f"unknown model {model!r}; there are {', '.join(MODELS)}")
        kinds = (MODELS[model].Config, TrainConfig, PrepareConfig, SplitConfig)
        known = {kind: {f.name for f in fields(kind)} for kind in kinds}
        unknown = sorted(set(options) - set().union(*known.values()))
        if unknown:
            names = ", ".join(sorted(set().union(*known.values())))
            raise InputError(f"{model} has no option {unknown[0]!r}; it takes {names}")
        chosen = [kind(**{key: value for key, value in options.items() if key in known[kind]}) for kind in kinds]
        self.model_name = model
        self.model_config, self.train_config, self.prepare_config, self.split_config = chosen
        self._config: RunConfig | None = None
        self._dataset: Dataset | None = None
        self._model: Model | None = None
        self._split: Split | None = None
        self.epochs: list[dict[str, Any]] = []
        self.metrics: dict[str, Any] = {}
        self.evaluations: dict[str, Evaluation] = {}
        self.interrupted = False
        self.summary = ""

    def fit(
        self,
        log: Any,
        out: str | Path | None = None,
        *,
        resume: bool = False,
        overwrite: bool = False,
        progress: bool = False,
        stop: Callable[[], bool] | None = None,
    ) -> "Recommender":
        """Prepare a log, split it and train.

        Args:
            log: what :func:`read_log` takes (a path, a polars or pandas frame, an Arrow table), or a
                :class:`Dataset`.
            out: run folder, written as training goes; the test metrics are computed and kept there too.
                Without it everything stays in memory.
            resume: go on with the run in ``out``, which must be of this log and these options.
            overwrite: replace a run that ``out`` holds.
            progress: show a bar.
            stop: asked after every step of training, which ends where it says True; see :func:`train`.

        Raises:
            InputError: bad input or options, or an ``out`` that may not be written to.
        """
        if (resume or overwrite) and out is None:
            raise InputError("resume and overwrite need a run folder; give out")
        if resume and overwrite:
            raise InputError("resume and overwrite exclude each other; give one")
        if out is not None and not resume:
            check_free(out, overwrite)  # before the work, not after it
        if resume and out is not None and not (Path(out) / CONFIG).is_file():
            resume = False  # killed before the folder was made, or a first start under a supervisor
            check_free(out)
        dataset = log if isinstance(log, Dataset) else prepare(read_log(log), self.prepare_config)
        del log  # a frame that nobody else holds need not stay while the model trains
        split = self.split_config.apply(dataset)
        counted = MODELS[self.model_name].COUNTED
        config = RunConfig(
            model=self.model_name,
            model_config=asdict(self.model_config),
            num_items=dataset.num_items,
            num_users=dataset.num_users,
            has_timestamps=dataset.has_timestamps,
            fingerprint=fingerprint(dataset),
            prepare=self.prepare_config,
            split=self.split_config,
            training={} if counted else asdict(self.train_config),
        )
        torch.manual_seed(self.train_config.seed)
        try:
            model = build_model(self.model_name, config.model_config, dataset.num_items, dataset.num_users)
        except (RuntimeError, MemoryError) as error:
            reason = one_line(error)
            raise InputError(f"{self.model_name} of these sizes can't be made ({reason}); give smaller ones") from error
        # All that can be found wrong is found before anything is written.
        started = time.perf_counter()
        if counted:
            model.count(split.train)
            seconds = max(time.perf_counter() - started, 1e-9)
        else:
            check_trainable(split, self.train_config)
        run: Run | None = None
        with kept_aside(out) if out is not None and overwrite else nullcontext():
            if out is not None:
                if resume:
                    run = Run(out)
                    _check_same(run, config)
                    run.check_resumable()
                    run.sweep()
                else:
                    run = Run.create(out, config, dataset, overwrite)
            best_epoch = 1
            if counted:
                tokens = int(split.train.lengths.sum())
                self.epochs = [{"epoch": 1, "loss": "", "seconds": seconds, "tokens_per_second": tokens / seconds}]
                self.summary = f"counted {tokens:,} interactions"
                if run is not None:
                    run.save_weights(model.state_dict())
                    run.save_epochs(self.epochs)
            else:
                try:
                    ways = {"run": run, "resume": resume, "progress": progress, "stop": stop}
                    trained = train(model, split, self.train_config, **ways)  # type: ignore[arg-type]
                except Exception:
                    if run is not None and not run.begun:  # nothing was learnt that somebody could go on with
                        shutil.rmtree(run.folder, ignore_errors=True)
                    raise
                self.epochs, best_epoch = trained.epochs, trained.best_epoch
                self.interrupted = trained.ended == "interrupted"
                how = {"early": ", stopped as validation got no better", "interrupted": ", interrupted",
                       "stopped": ", stopped where its budget ended"}.get(trained.ended, "")  # fmt: skip
                self.summary = f"epochs: {len(self.epochs)}{how}; the weights are those of epoch {best_epoch}"
        self._config, self._dataset, self._split, self._model = config, dataset, split, model.eval()
        if run is not None and not self.interrupted:
            self.metrics = {"best_epoch": best_epoch, "epochs": len(self.epochs)}
            if len(split.test):
                with threads(self.train_config.threads):
                    self.evaluations = {protocol: self.evaluate(protocol) for protocol in ("full", "sampled")}
                self.metrics["test"] = {name: found.to_dict() for name, found in self.evaluations.items()}
            run.save_metrics(self.metrics)
        return self

    def recommend(
        self,
        users: Iterable[Any] | pl.Series | None = None,
        histories: Any = None,
        k: int = 10,
        *,
        keep_seen: bool = False,
        allow: Iterable[Any] | None = None,
        deny: Iterable[Any] | None = None,
        strict: bool = False,
    ) -> pl.DataFrame:
        """The best ``k`` items for users of the log, or for people known by a history alone.

        Args:
            users: ids of the log; all of its users where neither is given.
            histories: items of each person in time order: a sequence of lists of item ids (``user_id`` is
                then the place in the sequence), a mapping of a name to such a list, or a frame that
                :func:`read_log` takes. Nobody needs to have been there in training.
            k: items a person; fewer where the filters leave fewer.
            keep_seen: recommend again what is in the history.
            allow: recommend these items only.
            deny: never recommend these items.
            strict: an unknown user or item is an error; otherwise a warning, and somebody of whom nothing
                is known gets the most popular items.

        Returns:
            A frame ``user_id``, ``item_id``, ``score``, ``rank`` (from 1), by user and rank. Scores of one
            person compare with each other only.

        Raises:
            InputError: ``k`` out of range, or something unknown with ``strict``.
        """
        frames = self.recommend_batches(users, histories, k, keep_seen=keep_seen, allow=allow, deny=deny, strict=strict)
        return pl.concat(list(frames))

    def recommend_to(self, out: str | Path, users: Any = None, histories: Any = None, k: int = 10, **more: Any) -> None:
        """Write what :meth:`recommend` gives to a file, a block of people at a time, for any number of them.

        Args:
            out: the file, ending in .parquet, .csv or .jsonl; it is there under its name when it is whole.
            users: as for :meth:`recommend`, and so are ``histories`` and ``k``.
            more: keywords of :meth:`recommend_batches`.
        """
        with closing(self.recommend_batches(users, histories, k, **more)) as frames:
            write_frames(frames, out)

    def recommend_batches(
        self,
        users: Iterable[Any] | pl.Series | None = None,
        histories: Any = None,
        k: int = 10,
        *,
        keep_seen: bool = False,
        allow: Iterable[Any] | None = None,
        deny: Iterable[Any] | None = None,
        strict: bool = False,
        batch_size: int = BLOCK,
        progress: bool = False,
    ) -> Generator[pl.DataFrame, None, None]:
        """The rows of :meth:`recommend` in frames of ``batch_size`` people, each made when it is asked for.

        There is one at least, maybe without rows. Scores equal those of :meth:`recommend` to the last bit where
        ``batch_size`` is a multiple of the default, and to rounding otherwise. ``progress`` shows a bar on a terminal.
        """
        _, dataset = self._ready()
        check_k(k, dataset.num_items)
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; give 1 or more")
        allowed = None if allow is None else self._items(allow, "allow", strict)
        denied = None if deny is None else self._items(deny, "deny", strict)
        if users is not None and histories is not None:
            raise InputError("users and histories exclude each other; ask for one at a time")
        people, asked = self._known(users, strict) if histories is None else self._strangers(histories, strict)
        filters = {"keep_seen": keep_seen, "allow": allowed, "deny": denied}
        return self._frames(people, asked, k, filters, batch_size, progress)

    def _frames(
        self, people: Histories, asked: pl.Series, k: int, filters: dict[str, Any], size: int, progress: bool
    ) -> Generator[pl.DataFrame, None, None]:
        model, dataset = self._ready()
        popular = most_popular(dataset, k, **filters) if (people.lengths == 0).any() else None
        served = 0
        starts = range(0, max(len(people), 1), size)
        bar = Console(stderr=True)
        show = progress and bar.is_terminal
        for start in track(starts, "recommending", console=bar, transient=True, disable=not show):
            block = slice(start, start + size)
            with threads():
                frame = _frame(dataset, asked[block], ranked(model, people.take(block), k, popular, **filters))
            served += int((frame["rank"] == 1).sum())
            yield frame
            del frame  # or it would stay while the next is made
        if left := len(people) - served:
            _warn(f"nothing is left to recommend to {left:,} of {len(people):,}; keep_seen (--keep-seen) leaves more")

    def similar(self, items: Iterable[Any], k: int = 10, *, strict: bool = False) -> pl.DataFrame:
        """The ``k`` items nearest to each given one, by the cosine of their embeddings.

        Returns:
            A frame ``item_id``, ``similar_item_id``, ``score`` (-1 to 1), ``rank`` (from 1).

        Raises:
            InputError: ``k`` out of range, an unknown item, or a model without embeddings.
        """
        model, dataset = self._ready()
        check_k(k, dataset.num_items - 1)
        if model.COUNTED or not model.FACTORED:
            raise InputError(f"{self.model_name} has no item embeddings to compare; fit another model, such as sasrec")
        asked = _series(items)
        indices = self._items(asked, "similar", strict=True) if strict else dataset.item_indices(asked)
        if not (indices > 0).any():
            raise InputError(f"none of the items is in the catalogue: {_some(asked)}; check the ids")
        if (indices == 0).any():
            _warn(f"unknown items left out: {_some(asked.filter(pl.Series(indices == 0)))}")
        indices = indices[indices > 0]
        found, cosines = nearest(model, indices, k)
        return pl.DataFrame(
            {
                "item_id": dataset.item_ids.gather(np.repeat(indices - 1, k)),
                "similar_item_id": dataset.item_ids.gather(found.ravel() - 1),
                "score": cosines.ravel(),
                "rank": np.tile(np.arange(1, k + 1), len(indices)),
            }
        )

    @threads()
    def evaluate(
        self,
        protocol: Literal["full", "sampled"] = "full",
        split: str = "test",
        *,
        negatives: int = 100,
        keep_seen: bool = False,
        seed: int = 0,
        baselines: bool = True,
    ) -> Evaluation:
        """Rank the held-out item of each user; see :func:`seqrec.evaluate.evaluate`."""
        model, dataset = self._ready()
        assert self._split is not None
        others: dict[str, Model] = {}
        for name in ("popularity", "recent-popularity", "markov") if baselines else ():
            if name != self.model_name and (dataset.has_timestamps or name != "recent-popularity"):
                others[name] = build_model(name, {}, dataset.num_items, dataset.num_users)
                others[name].count(self._split.train)
        return evaluate(
            model,
            self._split.targets(split),
            protocol=protocol,
            split=split,
            negatives=negatives,
            keep_seen=keep_seen,
            seed=seed,
            train_counts=self._split.train.item_counts(),
            baselines=others,
        )

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write a run folder; one that holds a run is refused without ``overwrite``."""
        model, dataset = self._ready()
        assert self._config is not None
        Run.create(
            folder,
            self._config,
            dataset,
            overwrite,
            weights=model.state_dict(),
            epochs=self.epochs,
            metrics=self.metrics,
        )

    @classmethod
    def load(cls, folder: str | Path) -> "Recommender":
        """Open a run folder."""
        run = Run(folder)
        config = run.config
        options = {**config.model_config, **config.training, **asdict(config.prepare), **asdict(config.split)}
        options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
        model = run.model()
        try:
            recommender = cls(config.model, **options)
        except (TypeError, ValueError) as error:
            raise InputError(f"{run.folder / CONFIG}: is damaged ({error}); train again") from error
        recommender._config = config
        recommender._model = model
        recommender._dataset = run.dataset
        recommender._split = run.split
        recommender.epochs = run.epochs().to_dicts()
        recommender.metrics = run.metrics()
        return recommender

    @property
    def dataset(self) -> Dataset:
        """The interactions that the model was given."""
        return self._ready()[1]

    @property
    def model(self) -> Model:
        """The trained model."""
        return self._ready()[0]

    def _ready(self) -> tuple[Model, Dataset]:
        if self._model is None or self._dataset is None:
            raise InputError("this recommender was not trained; call fit or load first")
        return self._model, self._dataset

    def _known(self, users: Iterable[Any] | pl.Series | None, strict: bool) -> tuple[Histories, pl.Series]:
        """Histories of users of the log, empty for unknown ones, and their ids."""
        _, dataset = self._ready()
        if users is None:
            return all_histories(dataset), dataset.user_ids
        asked = _series(users)
        asked = asked.cast(dataset.user_ids.dtype) if asked.dtype == pl.Null else asked
        indices = dataset.user_indices(asked)
        unknown = indices < 0
        if unknown.any():
            some = _some(asked.filter(pl.Series(unknown)))
            if strict:
                raise InputError(f"unknown users: {some}; check the ids, or give their histories")
            _warn(f"unknown users get the most popular items: {some}")
        inside = np.where(unknown, 0, indices)
        starts = np.where(unknown, 0, dataset.offsets[inside])
        ends = np.where(unknown, 0, dataset.offsets[inside + 1])
        return Histories(dataset, indices, starts, ends), asked

    def _strangers(self, histories: Any, strict: bool) -> tuple[Histories, pl.Series]:
        """Histories given as item ids, and the names of the people."""
        _, dataset = self._ready()
        if isinstance(histories, Mapping):
            names, lists = _series(histories.keys()), list(histories.values())
            names = names.cast(dataset.user_ids.dtype) if len(names) == 0 else names
        elif isinstance(histories, str | PathLike) or hasattr(type(histories), "columns"):
            given = prepare(read_log(histories))
            bounds = np.asarray(given.offsets)
            ids = given.item_ids.gather(np.asarray(given.items) - 1)
            names, lists = given.user_ids, [ids[int(a) : int(b)] for a, b in pairwise(bounds)]
        elif isinstance(histories, Iterable):
            lists = list(histories)
            names = pl.Series(range(len(lists)), dtype=pl.Int64)
        else:
            raise InputError(f"histories are lists of item ids, not {histories!r}; give [[...], [...]]")
        for items in lists:
            if isinstance(items, str | bytes) or not isinstance(items, Iterable):
                raise InputError(f"a history is a list of item ids, not {items!r}; give [[...], [...]]")
        parts_of = [_series(items) for items in lists]
        filled = [part for part in parts_of if len(part)]
        if len({part.dtype for part in filled}) > 1:  # such as the ids of one as numbers, of another as texts
            indices = np.concatenate([dataset.item_indices(part) for part in filled])
            flat = pl.concat([part.cast(pl.String) for part in filled])
        else:
            flat = pl.concat(filled) if filled else dataset.item_ids.clear()
            indices = dataset.item_indices(flat)
        if (indices == 0).any():
            some = _some(flat.filter(pl.Series(indices == 0)).unique(maintain_order=True))
            if strict:
                raise InputError(f"unknown items in a history: {some}; check the ids")
            _warn(f"unknown items are left out of the histories: {some}")
        cuts = np.cumsum([len(part) for part in parts_of])[:-1]
        parts = [part[part > 0] for part in np.split(indices, cuts)] if lists else []
        if any(len(part) == 0 for part in parts):
            if strict:
                raise InputError("a history is empty; give at least one item")
            _warn("somebody with an empty history gets the most popular items")
        return histories_of(dataset, parts), names.alias("user_id")

    def _items(self, ids: Iterable[Any], what: str, strict: bool) -> np.ndarray:
        """Indices of known items; unknown ones are a warning, or an error with ``strict``."""
        asked = _series(ids)
        indices = self._ready()[1].item_indices(asked)
        if (indices == 0).any():
            some = _some(asked.filter(pl.Series(indices == 0)))
            if strict:
                raise InputError(f"unknown items ({what}): {some}; check the ids")
            _warn(f"unknown items ({what}) are left out: {some}")
        return indices[indices > 0]


def _frame(dataset: Dataset, asked: pl.Series, found: tuple[np.ndarray, ...]) -> pl.DataFrame:
    rows, items, scores, ranks = found
    ids = {"user_id": asked.gather(rows), "item_id": dataset.item_ids.gather(items - 1)}
    return pl.DataFrame({**ids, "score": scores, "rank": ranks})


def _check_same(run: Run, config: RunConfig) -> None:
    """Refuse to resume with another log or other options than the run began with."""
    old, new = asdict(run.config), asdict(config)
    if old["fingerprint"] != new["fingerprint"]:
        raise InputError(f"{run.folder}: the run was begun on another log; give that log, or --overwrite")
    for part in ("model", "model_config", "prepare", "split", "training"):
        before, now = (value if isinstance(value, dict) else {part: value} for value in (old[part], new[part]))
        for name in before:
            plain = [list(v) if isinstance(v, tuple) else v for v in (before[name], now.get(name))]
            if plain[0] != plain[1] and name not in RESUMABLE:
                raise InputError(
                    f"{run.folder}: the run was begun with {name} = {before[name]}, not {now.get(name)}; "
                    "resume with the same options, or --overwrite"
                )


def _series(ids: Iterable[Any] | pl.Series) -> pl.Series:
    if isinstance(ids, pl.Series):
        return ids.alias("user_id")
    values = [ids] if isinstance(ids, str | int | np.integer) else list(ids)
    if any(isinstance(value, str) for value in values):
        values = [str(value) for value in values]
    return pl.Series("user_id", values, strict=False)


def _some(ids: pl.Series, most: int = 5) -> str:
    more = f" and {len(ids) - most} more" if len(ids) > most else ""
    return ", ".join(str(value) for value in ids.head(most)) + more


def _warn(message: str) -> None:
    """Warn of the line that called the package, however deep in it this is."""
    package = str(Path(__file__).parent)
    inside = takewhile(lambda step: step[0].f_code.co_filename.startswith(package), walk_stack(sys._getframe()))
    warnings.warn(message, UnknownIdWarning, stacklevel=1 + sum(1 for _ in inside))
