"""The class ``Recommender``: fit, recommend, find similar items, evaluate, save and load."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from seqrec.answering import Answering
from seqrec.data.dataset import Dataset
from seqrec.data.fields import by_kind, check_fields
from seqrec.data.prepare import PrepareConfig, read_and_prepared
from seqrec.data.split import TRAINED, Split, SplitConfig, TrainedOn
from seqrec.device import check_polars, threads, usual_torch, watch_forks
from seqrec.errors import InputError, RunWarning, check_whole, one_line, unchanged_by_failure, warn
from seqrec.models import AUTO, MODELS, named_model
from seqrec.models.base import Model
from seqrec.models.transitions import TransitionsConfig
from seqrec.ranking.baselines import evaluate_beside
from seqrec.ranking.protocols import Blocks, Evaluation, in_turn
from seqrec.run.config import CONFIG, Refit, RunConfig
from seqrec.run.folder import Run
from seqrec.run.new_items import with_more_items, with_new_items
from seqrec.run.place import Place, check_ways, reading
from seqrec.training.budget import Budget, budget_of
from seqrec.training.config import TrainConfig
from seqrec.training.fitting import fitted
from seqrec.training.plan import opened, planned, say_plan
from seqrec.training.tracking import Tracking


class Recommender(Answering):
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
        self._constants: TransitionsConfig | None = None  # of transition counts, if they are known before
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
        users: Any = None,
        init_from: str | Path | None = None,
        resume: bool = False,
        overwrite: bool = False,
        progress: bool = False,
        minutes: float | Budget | None = None,
        stop: Callable[[], bool] | None = None,
        track: Literal["mlflow", "tensorboard"] | Tracking | None = None,
        console: Console | None = None,
    ) -> "Recommender":
        """Prepare a log, split it and train; then test, and train again if ``refit`` says so.

        Args:
            log: interactions in any form that :func:`read_log` accepts (a path, a polars or pandas frame, an Arrow
                table), or a :class:`Dataset`.
            out: run folder, written during training. The model is then also tested, and the folder keeps the test
                metrics. By default everything stays in memory.
            items: descriptions of the items, in any form that :func:`read_items` accepts. Recommendations show their
                titles, and models learn what ``features`` names (``slirec`` the categories).
            users: descriptions of the users, in the same forms, of which models learn what ``user_features`` names.
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
            ways["tracking"] = Tracking(track, out, console) if isinstance(track, str) else track
            resume = place is not None and _settled(place, resume, overwrite)
            known = None if init_from is None else opened(init_from, place, resume)
            self._fit(given, (items, users), known, place, resume, console, **ways)
        return self

    def _fit(
        self, log: list[Any], tables: Any, known: Any, place: Any, resume: bool, console: Any, **ways: Any
    ) -> None:
        own = self.model_name, self.model_config, self.train_config
        name, sizes, training = own if known is None else known.options(*self._asked)
        dataset = read_and_prepared(log, self.prepare_config, *tables)
        more: dict[str, Any] = {"budget": ways["budget"], "resumed": place if resume else None, "earlier": known}
        kinds = sizes, training, self.prepare_config, self.split_config
        plan = planned(dataset, name, *kinds, self.refit, **more)
        say_plan(plan, console)
        found = fitted(dataset, plan, place, resume=resume, constants=self._constants, **ways)
        self._config, self._dataset, self._split, self._model = found.config, dataset, found.split, found.model
        self._trained_on, self._first, self.interrupted = found.trained_on, found.first, found.interrupted
        self.epochs, self.metrics, self.summary = found.epochs, found.metrics, found.summary
        self.evaluations, self.refit_evaluations = found.evaluations, found.refit_evaluations

    def add_items(self, items: Any) -> "Recommender":
        """Add items that training never saw, which are then ranked by their features. The run stays as it is.

        Args:
            items: their descriptions, in any form that :func:`read_items` accepts, with the columns of ``features``.

        Raises:
            InputError: the model learned no features, no item is new, or a column is missing or of another kind.
        """
        model, dataset = self._ready()
        assert self._config is not None
        self._dataset = with_new_items(self._config, dataset, items)
        self._config, self._model = with_more_items(self._config, model, self._dataset)
        self._split = self._first = None
        return self

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
        model, trained_on = self._ready("evaluate")[0], self._trained_on
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
        model, dataset = self._ready("save")
        assert self._config is not None
        is_refit = self._trained_on != "train"
        first = (self._before_refit() if is_refit else model).state_dict()
        refitted = (self._trained_on, model.state_dict()) if is_refit else None
        more: dict[str, Any] = {"addition": model.addition, "epochs": self.epochs, "metrics": self.metrics}
        Run.create(folder, self._config, dataset, overwrite, weights=first, refitted=refitted, **more)

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
            made = cls(config.model, refit=config.refit, **config.options)
        except (TypeError, ValueError) as error:
            raise InputError(f"{run.folder / CONFIG}: is damaged ({one_line(error)}); train again") from error
        made._config, made._model, made._dataset, made._split = config, run.model(), run.dataset, run
        assert run.trained_on is not None
        made._trained_on, made._first = run.trained_on, run
        run.dataset.read_tables()
        run.check_scores(made._model)
        made.epochs, made.metrics = run.epochs().to_dicts(), run.metrics()
        return made


def _settled(place: Place, resume: bool, overwrite: bool) -> bool:
    """Whether there is a run to resume, as :meth:`Place.settle`, saying so where one was meant to be."""
    found = place.settle(resume, overwrite)
    if resume and not found:
        warn(f"{place.shown}: holds no run to continue, so a new one begins", RunWarning)
    return found
