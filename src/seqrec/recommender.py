"""The class ``Recommender``: fit, recommend, find similar items, evaluate, save and load."""

from collections.abc import Callable, Generator, Iterable
from contextlib import closing, nullcontext
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import polars as pl
from rich.console import Console

from seqrec.data.dataset import Dataset
from seqrec.data.fields import by_kind, check_fields
from seqrec.data.formats.write import write_frames
from seqrec.data.people import given_people, known_items, known_people, listed_items
from seqrec.data.prepare import PrepareConfig, read_and_prepared
from seqrec.data.split import TRAINED, Split, SplitConfig, TrainedOn
from seqrec.device import check_polars, threads, usual_torch, watch_forks
from seqrec.errors import InputError, RunWarning, check_whole, one_line, unchanged_by_failure, warn
from seqrec.models import AUTO, MODELS, named_model
from seqrec.models.base import Model
from seqrec.predictor import Predictor
from seqrec.ranking.baselines import evaluate_beside
from seqrec.ranking.protocols import Blocks, Evaluation, in_turn
from seqrec.ranking.scoring import USERS_AT_ONCE, evaluation_mode
from seqrec.ranking.tables import recommended_tables, similar_table
from seqrec.ranking.topk import check_k
from seqrec.run.config import CONFIG, Refit, RunConfig
from seqrec.run.folder import Run
from seqrec.run.outputs import check_outputs
from seqrec.run.place import Place, check_ways, reading
from seqrec.training.budget import Budget, budget_of
from seqrec.training.config import TrainConfig
from seqrec.training.fitting import fitted
from seqrec.training.plan import opened, planned, say_plan
from seqrec.training.tracking import Tracking

BLOCK = 2 * USERS_AT_ONCE  # users per frame


class Recommender:
    """A model together with the data that it was trained on.

    Example:
        >>> recommender = Recommender("sasrec", embedding_dim=64, epochs=10).fit("interactions.csv")
        >>> recommender.recommend(users=["anna"], k=10)  # doctest: +SKIP

    Args:
        model: name of a model in ``seqrec.MODELS``, or auto: sasrec, beside which ssept and gru4rec are trained too
            where the recipe chooses several models.
        refit: what :meth:`fit` trains the chosen recipe on once more after the test, for recommending: ``all`` is the
            whole log, ``valid`` all but the test items.
        options: fields of the model's config (such as :class:`SASRecConfig`), :class:`TrainConfig`,
            :class:`PrepareConfig` and :class:`SplitConfig`, as keywords.

    Raises:
        InputError: the model or an option is unknown, or a value is out of range.
    """

    def __init__(self, model: str = AUTO, *, refit: Refit = "off", **options: Any) -> None:
        model, may_mix = named_model(model)
        if refit not in ("off", "all", "valid"):
            raise InputError(f"refit is {refit!r}; give off, all or valid")
        kinds = (MODELS[model].Config, TrainConfig, PrepareConfig, SplitConfig)
        given = by_kind(options, kinds, model, also="refit")
        if not may_mix and given[1].get("ensemble_kinds") is None:
            given[1]["ensemble_kinds"] = "same"
        chosen = [kind(**values) for kind, values in zip(kinds, given, strict=True)]
        self.model_name, self.refit, self._asked = model, refit, (AUTO if may_mix else model, options)
        self.model_config, self.train_config, self.prepare_config, self.split_config = chosen
        self._config: RunConfig | None = None
        self._dataset: Dataset | None = None
        self._model: Model | None = None
        self._split: Split | Run | None = None  # a loaded run is split when the split is first needed
        self._trained_on: TrainedOn = "train"
        self._first: Model | Run | None = None  # the model from before a refit; a loaded run reads it when needed
        self.epochs: list[dict[str, Any]] = []
        self.metrics: dict[str, Any] = {}
        self.evaluations: dict[str, Evaluation] = {}
        self.refit_evaluations: dict[str, Evaluation] = {}
        self.interrupted, self.summary = False, ""

    def fit(
        self,
        log: Any,
        out: str | Path | None = None,
        *,
        items: Any = None,
        init_from: str | Path | None = None,
        resume: bool = False,
        overwrite: bool = False,
        progress: bool = False,
        minutes: float | Budget | None = None,
        stop: Callable[[], bool] | None = None,
        track: Literal["mlflow", "tensorboard"] | None = None,
        console: Console | None = None,
    ) -> "Recommender":
        """Prepare a log, split it and train; then test, and train again if ``refit`` says so.

        Args:
            log: interactions in any form that :func:`read_log` accepts (a path, a polars or pandas frame, an Arrow
                table), or a :class:`Dataset`.
            out: run folder, written during training. The model is then also tested, and the folder keeps the test
                metrics. By default everything stays in memory.
            items: descriptions of the items, in any form that :func:`read_items` accepts. Recommendations show the
                titles beside the ids, and ``slirec`` learns the categories.
            init_from: run folder whose weights training starts from, matched by the ids of items and users. Options of
                the model and of training that are not given are those of that run; a few, such as ``epochs``, start
                anew, and training stops sooner. Weights of a refit are not used, because they know held-out items.
            resume: continue the run in ``out``. The log and the options must be those that it was started with.
            overwrite: replace the run in ``out``.
            progress: show a progress bar.
            minutes: time limit for all of it, kept within about 10 %: training ends early enough for what follows, and
                options that are not given may depend on it. A run that it ends can be resumed with more minutes, and
                cannot be reproduced byte for byte.
            stop: function that is called after every training step and ends training by returning True; see
                :func:`train`. A refit is not stopped.
            track: what records options, epochs and tests: ``mlflow``, where MLflow's own settings say, or
                ``tensorboard``, in ``$TENSORBOARD_LOGGING_DIR`` or the folder ``tensorboard`` beside ``out``.
            console: console that says, before training, how the log was split and what :meth:`Split.check` found. By
                default nothing is said, except for a warning if the log has times that can't be used for the split.

        Raises:
            InputError: the input or an option is bad, ``out`` cannot be written, or there is nothing to learn. The
                recommender keeps the state it had before.
        """
        watch_forks()
        check_polars("fit")
        check_ways(out, resume, overwrite)
        given, budget = [log], budget_of(minutes)
        del log  # frees the frame before training, unless the caller still holds it
        # ``Place`` locks the folder, so that no other process writes to it between the first check and the last file.
        with unchanged_by_failure(self), usual_torch(), Place(out) if out is not None else nullcontext() as place:
            ways: dict[str, Any] = {"progress": progress, "stop": stop, "budget": budget}
            ways["tracking"] = None if track is None else Tracking(track, out, console)
            resume = place.settle(resume, overwrite) if place is not None else False
            known = None if init_from is None else opened(init_from, place, resume)
            self._fit(given, items, known, place, resume, console, **ways)
        return self

    def _fit(self, log: list[Any], items: Any, known: Any, place: Any, resume: bool, console: Any, **ways: Any) -> None:
        own = self.model_name, self.model_config, self.train_config
        name, sizes, training = own if known is None else known.options(*self._asked)
        dataset = read_and_prepared(log, items, self.prepare_config)
        more: dict[str, Any] = {"budget": ways["budget"], "resumed": place if resume else None, "earlier": known}
        kinds = sizes, training, self.prepare_config, self.split_config
        plan = planned(dataset, name, *kinds, self.refit, **more)
        say_plan(plan, console)
        found = fitted(dataset, plan, place, resume=resume, **ways)
        self._config, self._dataset, self._split, self._model = found.config, dataset, found.split, found.model
        self._trained_on, self._first, self.interrupted = found.trained_on, found.first, found.interrupted
        self.epochs, self.metrics, self.evaluations = found.epochs, found.metrics, found.evaluations
        self.refit_evaluations, self.summary = found.refit_evaluations, found.summary

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
        """Recommend ``k`` items to each user of the log, or to each of the given histories.

        Args:
            users: user ids, as a list, an array or a column of any library, or a single id. By default all users of
                the log, unless ``histories`` is given. 128, "128" and 128.0 are the same id.
            histories: item ids of each user in time order: a sequence of lists (``user_id`` is then the index in the
                sequence), a mapping from names to lists, or anything that :func:`read_log` accepts. The users need
                not be in the log.
            times: time of each item of ``histories``, in the same shape: numbers since 1970, dates, or ISO strings.
                Each history is sorted by time (equal times keep their order), and tisasrec, hstu and slirec also
                read the times. Histories in a file or a frame have them in a column instead.
            k: number of items per user. Users get fewer if the filters leave fewer.
            keep_seen: also recommend items that the user has already seen: those of the history and, for users of the
                log, those that filters such as ``min_rating`` dropped. By default the run decides as it did for
                validation and test: False, unless most validation items were in the history.
            allow: item ids; only these are recommended.
            deny: item ids; these are never recommended.
            strict: raise an error for an unknown user or item. By default it is a warning, and users without any known
                item get the most popular items.

        Returns:
            A frame with the columns ``user_id``, ``item_id``, ``score`` and ``rank`` (from 1), sorted by user and rank,
            and with ``title`` after ``item_id`` if titles are known. Compare scores only within one user. Their last
            bits may depend on which other users are in the same call.

        Raises:
            InputError: ``k`` is out of range, or ``strict`` is set and an id is unknown.
        """
        frames = self.recommend_batches(
            users, histories, k, times=times, keep_seen=keep_seen, allow=allow, deny=deny, strict=strict
        )
        return reduce(pl.DataFrame.vstack, frames)  # pl.concat hangs in a forked process

    def recommend_to(self, out: str | Path, users: Any = None, histories: Any = None, k: int = 10, **more: Any) -> None:
        """Write the result of :meth:`recommend` to a file, one batch of users at a time.

        Args:
            out: file name, ending in .parquet, .csv or .jsonl. The file appears only when it is complete.
            users: user ids, as for :meth:`recommend`.
            histories: histories, as for :meth:`recommend`.
            k: number of items per user.
            more: other keywords of :meth:`recommend_batches`.
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
        """Yield the rows of :meth:`recommend` in frames of ``batch_size`` users, each computed on demand.

        There is at least one frame, which may be empty. The scores equal those of :meth:`recommend` to the last bit for
        any ``batch_size``. ``progress`` shows a progress bar on a terminal.
        """
        model, dataset = self._ready()
        check_k(k, dataset.num_items)
        check_whole("batch_size", batch_size, least=1)
        allowed = None if allow is None else known_items(dataset, allow, "allow", strict)
        denied = None if deny is None else known_items(dataset, deny, "deny", strict)
        if users is not None and histories is not None:
            raise InputError("users and histories exclude each other; ask for one at a time")
        if times is not None and histories is None:
            raise InputError("times belong to the items of histories; give histories too")
        if histories is None:
            people, asked = known_people(dataset, users, strict)
        else:
            people, asked = given_people(dataset, histories, strict, times, model.USES_TIMES)
        blocks = self._predictor().rank(people, k, keep_seen=keep_seen, allow=allowed, deny=denied, size=batch_size)
        return recommended_tables(model, dataset, asked, blocks, batch_size, progress)

    def _predictor(self) -> Predictor:
        """A predictor that uses the model with its current weights."""
        model, dataset = self._ready()
        with evaluation_mode(model):
            return Predictor(model, dataset, self._keeps_seen(None), first_pass=False)

    def similar(self, items: Iterable[Any], k: int = 10, *, strict: bool = False) -> pl.DataFrame:
        """Find the ``k`` items most similar to each given item, by the cosine of their embeddings.

        Args:
            items: item ids.
            k: number of similar items per item.
            strict: raise an error for an unknown item. By default it is a warning.

        Returns:
            A frame with the columns ``item_id``, ``similar_item_id``, ``score`` (-1 to 1) and ``rank`` (from 1). If
            titles are known, ``title`` and ``similar_title`` follow their ids.

        Raises:
            InputError: ``k`` is out of range, ``strict`` is set and an item is unknown, or the model has no embeddings.
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
        blocks: Blocks = in_turn,
    ) -> Evaluation:
        """Evaluate the model on the held-out item of each user; see :func:`seqrec.evaluate`.

        If a refit trained the weights in use on these items, the weights from before the refit are evaluated instead,
        with a warning.

        Args:
            protocol: items to rank against: ``full``, the whole catalogue, or ``sampled``, random unseen items.
            split: held-out items to rank: ``test`` or ``valid``.
            negatives: number of random items per user in the sampled protocol.
            keep_seen: keep items of the history in a full ranking. By default as in the run's validation.
            seed: random seed of the sampled items, and of the bootstrap for the interval of coverage.
            baselines: also evaluate the models that only count, beside this one.
            blocks: function that ranks the users in blocks, as for :func:`seqrec.evaluate`.

        Raises:
            InputError: an argument is out of range, or there is no held-out item.
        """
        model, trained_on = self._ready()[0], self._trained_on
        assert self._split is not None
        held_out = self._split.split if isinstance(self._split, Run) else self._split
        check_whole("seed", seed, least=0)
        check_whole("negatives", negatives, least=1)
        held_out.targets(split)  # refuses other names
        if trained_on == "all" or (trained_on == "train+valid" and split == "valid"):
            warn(
                f"the weights in use were trained {TRAINED[trained_on]}, so the {split} items are not held out for "
                "them; these are the figures of the weights from before the refit",
                RunWarning,
            )
            model, trained_on = self._before_refit(), "train"
        options = {"protocol": protocol, "negatives": negatives, "keep_seen": self._keeps_seen(keep_seen), "seed": seed}
        return evaluate_beside(model, self.label, held_out, trained_on, split, baselines, blocks=blocks, **options)

    def _before_refit(self) -> Model:
        """The model that was trained without the held-out items."""
        if isinstance(self._first, Run):
            self._first = self._first.model("train")
        assert self._first is not None
        return self._first

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write a run folder. If it already holds a run, ``overwrite`` replaces it; by default that is an error."""
        check_polars("writing a run")
        model, dataset = self._ready()
        assert self._config is not None
        is_refit = self._trained_on != "train"
        Run.create(
            folder,
            self._config,
            dataset,
            overwrite,
            weights=(self._before_refit() if is_refit else model).state_dict(),
            refitted=(self._trained_on, model.state_dict()) if is_refit else None,
            addition=model.addition,
            epochs=self.epochs,
            metrics=self.metrics,
        )

    @classmethod
    def load(cls, folder: str | Path) -> "Recommender":
        """Open a run folder. If another process is replacing the run, this opens either the old or the new one."""
        watch_forks()
        check_polars("loading a run")
        return reading(folder, lambda: cls._load(Run(folder)))

    @classmethod
    def _load(cls, run: Run) -> "Recommender":
        config = run.config
        try:
            check_fields(TrainConfig, config.training)
            recommender = cls(config.model, refit=config.refit, **config.options)
        except (TypeError, ValueError) as error:
            raise InputError(f"{run.folder / CONFIG}: is damaged ({one_line(error)}); train again") from error
        recommender._config, recommender._model = config, run.model()
        assert run.trained_on is not None
        recommender._trained_on, recommender._first, recommender._split = run.trained_on, run, run
        recommender._dataset = run.dataset
        if run.dataset.item_table is not None:
            run.dataset.item_table.read()
        run.check_scores(recommender._model)
        recommender.epochs, recommender.metrics = run.epochs().to_dicts(), run.metrics()
        return recommender

    @property
    def dataset(self) -> Dataset:
        """The dataset that the model was trained on."""
        return self._ready()[1]

    @property
    def model(self) -> Model:
        """The trained model. After a refit, that of the refit."""
        return self._ready()[0]

    @property
    def label(self) -> str:
        """The model's name in tables."""
        return self._config.label if self._config else self.model_name

    @property
    def trained_on(self) -> TrainedOn:
        """What the model was trained on: ``train``, or after a refit ``train+valid`` or ``all``."""
        self._ready()
        return self._trained_on

    def _keeps_seen(self, asked: bool | None) -> bool:
        """``asked``, or by default the value that the run chose."""
        return bool(self._config and self._config.split.keep_seen) if asked is None else asked

    def _ready(self) -> tuple[Model, Dataset]:
        if self._model is None or self._dataset is None:
            raise InputError("this recommender was not trained; call fit or load first")
        return self._model, self._dataset
