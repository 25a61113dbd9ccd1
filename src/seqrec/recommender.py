"""The public face: fit, recommend, evaluate, save, load."""

from collections.abc import Callable, Generator, Iterable
from contextlib import closing, nullcontext
from dataclasses import asdict, fields
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import polars as pl

from seqrec.data.dataset import Dataset
from seqrec.data.fields import check_fields
from seqrec.data.formats.read import read_log_with_summary
from seqrec.data.formats.write import write_frames
from seqrec.data.people import given_people, known_items, known_people, listed_items
from seqrec.data.prepare import PrepareConfig, prepare
from seqrec.data.split import Split, SplitConfig
from seqrec.device import check_polars, threads, usual_torch, watch_forks
from seqrec.errors import InputError, check_whole, one_line, unchanged_by_failure
from seqrec.models import MODELS, build_model
from seqrec.models.base import Model
from seqrec.predictor import Predictor
from seqrec.ranking.protocols import Evaluation, evaluate
from seqrec.ranking.scoring import USERS_AT_ONCE, evaluation_mode
from seqrec.ranking.tables import recommended_tables, similar_table
from seqrec.ranking.topk import check_k
from seqrec.run.config import CONFIG, RunConfig
from seqrec.run.folder import Run
from seqrec.run.outputs import check_outputs
from seqrec.run.place import Place, reading
from seqrec.training.config import TrainConfig
from seqrec.training.loop import train
from seqrec.training.plan import check_items, counted, planned

BLOCK = 2 * USERS_AT_ONCE  # people per frame


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
        given = [{key: value for key, value in options.items() if key in known[kind]} for kind in kinds]
        chosen = [kind(**values) for kind, values in zip(kinds, given, strict=True)]
        self.model_name = model
        self.model_config, self.train_config, self.prepare_config, self.split_config = chosen
        self._config: RunConfig | None = None
        self._dataset: Dataset | None = None
        self._model: Model | None = None
        self._split: Split | Run | None = None  # of a run, split when it is needed
        self.epochs: list[dict[str, Any]] = []
        self.metrics: dict[str, Any] = {}
        self.evaluations: dict[str, Evaluation] = {}
        self.interrupted, self.summary = False, ""

    def fit(
        self,
        log: Any,
        out: str | Path | None = None,
        *,
        items: Any = None,
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
            items: descriptions of the items, which :func:`read_items` takes: titles appear beside ids in what is
                recommended, and ``slirec`` learns the categories.
            resume: go on with the run in ``out``, which must be of this log and these options.
            overwrite: replace a run that ``out`` holds.
            progress: show a bar.
            stop: asked after every step of training, which ends where it says True; see :func:`train`.

        Raises:
            InputError: bad input or options, an ``out`` that may not be written to, or nothing that could be learnt;
                the recommender is as it was before.
        """
        watch_forks()
        check_polars("fit")
        if (resume or overwrite) and out is None:
            raise InputError("resume and overwrite need a run folder; give out")
        if resume and overwrite:
            raise InputError("resume and overwrite exclude each other; give one")
        given = [log]
        del log  # a frame that nobody else holds must not take memory while the model trains
        # Nobody else can take the place between the first check and the last file.
        with unchanged_by_failure(self), usual_torch(), Place(out) if out is not None else nullcontext() as place:
            resume = place.settle(resume, overwrite) if place is not None else False
            self._fit(given, items, place, resume, progress, stop)
        return self

    def _fit(self, given: list[Any], items: Any, place: Place | None, resume: bool, progress: bool, stop: Any) -> None:
        log = given.pop()
        rated = self.prepare_config.min_rating is not None
        if not isinstance(log, Dataset):
            log = prepare(read_log_with_summary(log, needs_rating=rated)[0], self.prepare_config)
        dataset: Dataset = log if items is None else log.with_items(items)
        config, split, model = planned(
            dataset, self.model_name, self.model_config, self.train_config, self.prepare_config, self.split_config
        )
        self.epochs, self.metrics, self.evaluations = [], {}, {}
        self.interrupted, self.summary = False, ""
        # All that can be found wrong is found before anything is written.
        if model.COUNTED:
            self.epochs, self.summary = counted(model, split.train)
        run = Run.resume(place, config, self.train_config.resumable) if place is not None and resume else None
        if run is not None:
            check_items(run, dataset, model.USES_CATEGORIES)
        if place is not None and run is None:
            found = {"weights": model.state_dict(), "epochs": self.epochs} if model.COUNTED else {}
            run = Run.begin(place, config, dataset, **found)  # type: ignore[arg-type]
        elif run is not None and model.COUNTED:
            run.save_weights(model.state_dict())
            run.save_epochs(self.epochs)
        best_epoch = 1
        if not model.COUNTED:
            ways = {"run": run, "resume": resume, "progress": progress, "stop": stop}
            keep_seen = bool(config.split.keep_seen)
            trained = train(model, split, self.train_config, keep_seen=keep_seen, **ways)
            self.epochs, best_epoch = trained.epochs, trained.best_epoch
            self.interrupted, self.summary = trained.ended == "interrupted", trained.summary
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
        times: Any = None,
        keep_seen: bool | None = None,
        allow: Iterable[Any] | None = None,
        deny: Iterable[Any] | None = None,
        strict: bool = False,
    ) -> pl.DataFrame:
        """The best ``k`` items for users of the log, or for people known by a history alone.

        Args:
            users: ids of the log, or a single one: a list, an array or a column of any library; all of its users
                where neither is given. 128, "128" and 128.0 are the same id.
            histories: items of each person in time order: a sequence of lists of item ids (``user_id`` is
                then the place in the sequence), a mapping of a name to such a list, or a frame that
                :func:`read_log` takes. Nobody needs to have been there in training.
            times: of histories given as lists, in the same shape: numbers since 1970, dates, or ISO texts. They order
                each history (equal ones keep their order), and tisasrec and slirec learn from them; a file or a frame
                has them in a column.
            k: items per person; fewer where the filters leave fewer.
            keep_seen: recommend again what the person has met: what is in the history and, for users of the log,
                what the filters (min_rating and the others) dropped. By default as the run was validated and tested,
                which is without, unless most users take again what they had.
            allow: recommend these items only.
            deny: never recommend these items.
            strict: an unknown user or item is an error; otherwise a warning, and somebody of whom nothing
                is known gets the most popular items.

        Returns:
            A frame ``user_id``, ``item_id``, ``score``, ``rank`` (from 1), by user and rank, with ``title`` after
            ``item_id`` where titles are known. Scores of one person compare with each other only. They don't depend on
            ``batch_size``, but their last bits may differ where other people are asked for with that person.

        Raises:
            InputError: ``k`` out of range, or something unknown with ``strict``.
        """
        frames = self.recommend_batches(
            users, histories, k, times=times, keep_seen=keep_seen, allow=allow, deny=deny, strict=strict
        )
        return reduce(pl.DataFrame.vstack, frames)  # pl.concat hangs in a forked process

    def recommend_to(self, out: str | Path, users: Any = None, histories: Any = None, k: int = 10, **more: Any) -> None:
        """Write what :meth:`recommend` gives to a file, a block of people at a time, for any number of them.

        Args:
            out: the file, ending in .parquet, .csv or .jsonl; it appears under its name once it is complete.
            users: as for :meth:`recommend`, and so are ``histories`` and ``k``.
            more: keywords of :meth:`recommend_batches`.
        """
        check_outputs(out)
        check_polars("writing a table")
        with closing(self.recommend_batches(users, histories, k, **more)) as frames:
            write_frames(frames, out)

    def recommend_batches(
        self,
        users: Iterable[Any] | pl.Series | None = None,
        histories: Any = None,
        k: int = 10,
        *,
        times: Any = None,
        keep_seen: bool | None = None,
        allow: Iterable[Any] | None = None,
        deny: Iterable[Any] | None = None,
        strict: bool = False,
        batch_size: int = BLOCK,
        progress: bool = False,
    ) -> Generator[pl.DataFrame, None, None]:
        """The rows of :meth:`recommend` in frames of ``batch_size`` people, each made when it is asked for.

        There is at least one, possibly without rows. Scores equal those of :meth:`recommend` to the last bit, whatever
        ``batch_size`` is. ``progress`` shows a bar on a terminal.
        """
        model, dataset = self._ready()
        check_k(k, dataset.num_items)
        check_whole("batch_size", batch_size, least=1)
        allowed = None if allow is None else known_items(dataset, allow, "allow", strict)
        denied = None if deny is None else known_items(dataset, deny, "deny", strict)
        if users is not None and histories is not None:
            raise InputError("users and histories exclude each other; ask for one at a time")
        if times is not None and histories is None:
            raise InputError("times are of the items of histories; give histories too")
        people, asked = (
            known_people(dataset, users, strict)
            if histories is None
            else given_people(dataset, histories, strict, times, model.USES_TIMES)
        )
        blocks = self._predictor().rank(people, k, keep_seen=keep_seen, allow=allowed, deny=denied, size=batch_size)
        return recommended_tables(model, dataset, asked, blocks, batch_size, progress)

    def _predictor(self) -> Predictor:
        """A predictor of the model as it is now."""
        model, dataset = self._ready()
        with evaluation_mode(model):
            return Predictor(model, dataset, self._keeps_seen(None))

    def similar(self, items: Iterable[Any], k: int = 10, *, strict: bool = False) -> pl.DataFrame:
        """The ``k`` items nearest to each given one, by the cosine of their embeddings.

        Returns:
            A frame ``item_id``, ``similar_item_id``, ``score`` (-1 to 1), ``rank`` (from 1); where titles are known,
            ``title`` and ``similar_title`` stand after the ids.

        Raises:
            InputError: ``k`` out of range, an unknown item, or a model without embeddings.
        """
        model, dataset = self._ready()
        indices = listed_items(dataset, items, strict)
        with threads(), evaluation_mode(model):
            found, cosines = self._predictor().neighbours(indices, k)
        return similar_table(dataset, indices, found, cosines)

    @threads()
    def evaluate(
        self,
        protocol: Literal["full", "sampled"] = "full",
        split: str = "test",
        *,
        negatives: int = 100,
        keep_seen: bool | None = None,
        seed: int = 0,
        baselines: bool = True,
    ) -> Evaluation:
        """Rank the held-out item of each user; see :func:`seqrec.evaluate`.

        By default, items of the history are ranked if they were in validation; ``keep_seen`` decides otherwise.
        """
        model, dataset = self._ready()
        assert self._split is not None
        held_out = self._split.split if isinstance(self._split, Run) else self._split
        check_whole("seed", seed, least=0)
        check_whole("negatives", negatives, least=1)
        others: dict[str, Model] = {}
        for name in ("popularity", "recent-popularity", "markov") if baselines else ():
            if name != self.model_name and (dataset.has_timestamps or name != "recent-popularity"):
                others[name] = build_model(name, {}, dataset.num_items, dataset.num_users)
                others[name].count(held_out.train)
        return evaluate(
            model,
            held_out.targets(split),
            protocol=protocol,
            split=split,
            negatives=negatives,
            keep_seen=self._keeps_seen(keep_seen),
            seed=seed,
            train_counts=held_out.train.item_counts(),
            baselines=others,
        )

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write a run folder. A folder that holds a run already is refused unless ``overwrite`` is set."""
        check_polars("writing a run")
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
        """Open a run folder. While another process replaces the run, either the old or the new one is opened."""
        watch_forks()
        check_polars("loading a run")
        return reading(folder, lambda: cls._load(Run(folder)))

    @classmethod
    def _load(cls, run: Run) -> "Recommender":
        config = run.config
        options = {**config.model_config, **config.training, **asdict(config.prepare), **asdict(config.split)}
        options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
        try:
            check_fields(TrainConfig, config.training)
            recommender = cls(config.model, **options)
        except (TypeError, ValueError) as error:
            raise InputError(f"{run.folder / CONFIG}: is damaged ({one_line(error)}); train again") from error
        recommender._config = config
        recommender._model = run.model()
        recommender._dataset = run.dataset
        if run.dataset.item_table is not None:
            run.dataset.item_table.read()
        recommender._split = run
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

    def _keeps_seen(self, asked: bool | None) -> bool:
        """What was asked for, or else what the run chose."""
        return bool(self._config and self._config.split.keep_seen) if asked is None else asked

    def _ready(self) -> tuple[Model, Dataset]:
        if self._model is None or self._dataset is None:
            raise InputError("this recommender was not trained; call fit or load first")
        return self._model, self._dataset
