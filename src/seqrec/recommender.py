"""The public face: fit, recommend, evaluate, save, load."""

import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing, nullcontext
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from rich.console import Console
from rich.progress import track

from seqrec.data.dataset import Dataset
from seqrec.data.fields import check_fields
from seqrec.data.formats.read import read_log
from seqrec.data.formats.write import write_frames
from seqrec.data.prepare import PrepareConfig, prepare
from seqrec.data.split import Histories, Split, SplitConfig
from seqrec.device import threads
from seqrec.errors import InputError, one_line
from seqrec.models import MODELS, build_model
from seqrec.models.base import Model
from seqrec.predictor import given_people, ids_of, known_items, known_people, some_of, table_of, warn
from seqrec.ranking.protocols import Evaluation, evaluate
from seqrec.ranking.scoring import USERS_AT_ONCE
from seqrec.ranking.topk import check_k, most_popular, nearest, ranked
from seqrec.run.config import CONFIG, RESUMABLE, RunConfig, fingerprint
from seqrec.run.folder import Run
from seqrec.run.outputs import check_outputs
from seqrec.run.place import Place, reading
from seqrec.training.config import TrainConfig
from seqrec.training.loop import check_trainable, train

BLOCK = 2 * USERS_AT_ONCE  # people a frame: whole groups of those scored together, or the last bits would differ


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
        given = [log]
        del log  # a frame that nobody else holds need not stay while the model trains
        with Place(out) if out is not None else nullcontext() as place:  # held from before the work to its end
            resume = place.settle(resume, overwrite) if place is not None else False
            self._fit(given, place, resume, progress, stop)
        return self

    def _fit(
        self, given: list[Any], place: Place | None, resume: bool, progress: bool, stop: Callable[[], bool] | None
    ) -> None:
        log = given.pop()
        dataset = log if isinstance(log, Dataset) else prepare(read_log(log), self.prepare_config)
        del log
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
        best_epoch = 1
        if place is not None and resume:
            run = Run.resume(place, config, RESUMABLE)
        if counted:
            tokens = int(split.train.lengths.sum())
            self.epochs = [{"epoch": 1, "loss": "", "seconds": seconds, "tokens_per_second": tokens / seconds}]
            self.summary = f"counted {tokens:,} interactions"
            if place is not None and run is None:
                run = Run.begin(place, config, dataset, weights=model.state_dict(), epochs=self.epochs)
            elif run is not None:
                run.save_weights(model.state_dict())
                run.save_epochs(self.epochs)
        else:
            if place is not None and run is None:
                run = Run.begin(place, config, dataset)
            ways = {"run": run, "resume": resume, "progress": progress, "stop": stop}
            trained = train(model, split, self.train_config, **ways)  # type: ignore[arg-type]
            self.epochs, best_epoch = trained.epochs, trained.best_epoch
            self.interrupted = trained.ended == "interrupted"
            how = {"early": ", stopped as validation got no better", "interrupted": ", interrupted",
                   "stopped": ", stopped where its budget ended"}.get(trained.ended, "")  # fmt: skip
            self.summary = f"epochs: {len(self.epochs)}{how}; the weights are those of epoch {best_epoch}"
        if run is not None:
            run.check_there()
            run.take_over()
        self._config, self._dataset, self._split, self._model = config, dataset, split, model.eval()
        if run is not None and not self.interrupted:
            self.metrics = {"best_epoch": best_epoch, "epochs": len(self.epochs)}
            if len(split.test):
                with threads(self.train_config.threads):
                    self.evaluations = {protocol: self.evaluate(protocol) for protocol in ("full", "sampled")}
                self.metrics["test"] = {name: found.to_dict() for name, found in self.evaluations.items()}
            run.save_metrics(self.metrics)

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
        check_outputs(out)
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
        allowed = None if allow is None else known_items(dataset, allow, "allow", strict)
        denied = None if deny is None else known_items(dataset, deny, "deny", strict)
        if users is not None and histories is not None:
            raise InputError("users and histories exclude each other; ask for one at a time")
        people, asked = (
            known_people(dataset, users, strict) if histories is None else given_people(dataset, histories, strict)
        )
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
                frame = table_of(dataset, asked[block], ranked(model, people.take(block), k, popular, **filters))
            served += int((frame["rank"] == 1).sum())
            yield frame
            del frame  # or it would stay while the next is made
        if left := len(people) - served:
            warn(f"nothing is left to recommend to {left:,} of {len(people):,}; keep_seen (--keep-seen) leaves more")

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
        asked = ids_of(items)
        indices = known_items(dataset, asked, "similar", strict=True) if strict else dataset.item_indices(asked)
        if not (indices > 0).any():
            raise InputError(f"none of the items is in the catalogue: {some_of(asked)}; check the ids")
        if (indices == 0).any():
            warn(f"unknown items left out: {some_of(asked.filter(pl.Series(indices == 0)))}")
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
        """Rank the held-out item of each user; see :func:`seqrec.evaluate`."""
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
        """Open a run folder; while another process replaces the run, it is the one or the other."""
        return reading(folder, lambda: cls._load(Run(folder)))

    @classmethod
    def _load(cls, run: Run) -> "Recommender":
        config = run.config
        options = {**config.model_config, **config.training, **asdict(config.prepare), **asdict(config.split)}
        options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
        try:
            check_fields(TrainConfig, config.training, fractions=True)
            recommender = cls(config.model, **options)
        except (TypeError, ValueError) as error:
            raise InputError(f"{run.folder / CONFIG}: is damaged ({one_line(error)}); train again") from error
        recommender._config = config
        recommender._model = run.model()
        recommender._dataset = run.dataset
        recommender._split = run.split
        run.check_scores(recommender._model)
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
