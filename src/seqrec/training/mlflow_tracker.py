"""MLflow as a tracker: a run per training, in the store and the experiment that MLflow's own settings name."""

import logging
import os
import re
import shlex
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

from seqrec.errors import missing_extra

#: Experiment of the runs, unless MLflow's settings name another.
EXPERIMENT = "seqrec"
KEY = "seqrec_key"
_BATCH = 100  # options or texts that MLflow takes at once


def import_mlflow() -> ModuleType:
    """The module ``mlflow``.

    Raises:
        InputError: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import mlflow.entities
    except ImportError as error:
        raise missing_extra("track mlflow", "mlflow") from error
    module: ModuleType = mlflow
    return module


@contextmanager
def _quiet(least: int = logging.CRITICAL + 1) -> Iterator[None]:
    """Keep the log of MLflow off the terminal, except from a level on. It logs errors that it raises as well."""
    log = logging.getLogger("mlflow")
    before = log.level
    log.setLevel(least)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


class MLflowTracker:
    """A run of MLflow. The active run and experiment of the program stay as they are.

    Args:
        above: id of the run above it. By default the active run, if there is one.
    """

    title = "MLflow"

    def __init__(self, above: str = "") -> None:
        self._mlflow, self._above, self._run, self._name = import_mlflow(), above, "", ""
        self._known: dict[str, str] = {}  # options that the run has, which MLflow never changes
        with _quiet(logging.WARNING):  # it says so when it waits for a store
            self._uri = self._mlflow.get_tracking_uri()
            try:
                self._client = self._mlflow.MlflowClient(self._uri)
                self._experiment = self._find_experiment()
            except ImportError as error:
                raise missing_extra(f"the store {_shown(self._uri)} of MLflow", "mlflow") from error

    def _find_experiment(self) -> Any:
        """The experiment that the settings name, which is made if it has a name and is not there."""
        name, number = os.environ.get("MLFLOW_EXPERIMENT_NAME"), os.environ.get("MLFLOW_EXPERIMENT_ID")
        if number and not name:
            return self._client.get_experiment(number)
        name = name or EXPERIMENT
        found = self._client.get_experiment_by_name(name)
        if found is None:
            with suppress(self._mlflow.MlflowException):  # another process may be first
                self._client.create_experiment(name)
            found = self._client.get_experiment_by_name(name)
        if found is None:
            raise RuntimeError(f"the experiment {name} can't be made")
        return found

    def begin(self, key: str, name: str, resume: bool) -> dict[str, set[int]]:
        """Start a run, a child of the one above if there is one; or go on with the last one of the same key."""
        with _quiet():
            found = self._last_run(key) if resume else None
            if found is None:
                tags, parent, active = {KEY: key}, self._above, self._mlflow.active_run()
                if parent or active is not None:
                    tags["mlflow.parentRunId"] = parent or active.info.run_id
                run = self._client.create_run(self._experiment.experiment_id, tags=tags, run_name=name)
                self._run, self._name = run.info.run_id, name
                return {}
            self._run, self._name = found.info.run_id, found.info.run_name
            self._known = dict(found.data.params)
            self._client.update_run(self._run, status="RUNNING")
            histories = {name: self._client.get_metric_history(self._run, name) for name in found.data.metrics}
            return {name: {value.step for value in history} for name, history in histories.items()}

    def _last_run(self, key: str) -> Any:
        runs = self._client.search_runs(
            [self._experiment.experiment_id],
            f"tags.{KEY} = '{key}'",
            max_results=1,
            order_by=["attributes.start_time DESC"],
        )
        return runs[0] if runs else None

    @property
    def place(self) -> str:
        """The id of the run."""
        return self._run

    def where(self) -> str:
        """The run, its experiment and store, and the command or the address that shows it."""
        about = f"MLflow: run {self._name} ({self._run}) of the experiment {self._experiment.name}"
        if self._uri.startswith("http"):
            number = self._experiment.experiment_id
            return f"{about}, {_shown(self._uri).rstrip('/')}/#/experiments/{number}/runs/{self._run}"
        shows = shlex.join(["mlflow", "server", "--backend-store-uri", _shown(self._uri)])
        return f"{about}; {shows} shows it"

    def write_options(self, options: Mapping[str, Any]) -> None:
        """Write params. One that differs from the run's, as ``epochs`` of a resumed training may, becomes a tag."""
        texts = {name: str(value) for name, value in options.items()}
        new = {name: text for name, text in texts.items() if name not in self._known}
        entities = self._mlflow.entities
        self._log(params=[entities.Param(name, text) for name, text in new.items()])
        self._known |= new
        changed = {name: text for name, text in texts.items() if self._known[name] != text}
        self._log(tags=[entities.RunTag(f"resumed.{name}", text) for name, text in changed.items()])

    def write_texts(self, title: str, texts: Mapping[str, str], step: int) -> None:
        """Write tags."""
        del title, step
        self._log(tags=[self._mlflow.entities.RunTag(name, text) for name, text in texts.items()])

    def write_values(self, values: Mapping[str, float], step: int, moment: float) -> None:
        """Write metrics."""
        metric, time = self._mlflow.entities.Metric, int(1000 * moment)
        self._log(metrics=[metric(name, value, time, step) for name, value in values.items()])

    def _log(self, **entities: list[Any]) -> None:
        with _quiet():
            for kind, values in entities.items():
                for start in range(0, len(values), _BATCH):
                    self._client.log_batch(self._run, synchronous=True, **{kind: values[start : start + _BATCH]})

    def end(self, status: str, step: int) -> None:
        """End the run."""
        del step
        with _quiet():
            self._client.set_terminated(self._run, status)


def _shown(uri: str) -> str:
    """A URI without user and password."""
    return re.sub(r"//[^/@]*@", "//", uri)
