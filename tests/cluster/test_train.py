"""Training on a Ray cluster of several small nodes on this machine, and what is wrong from the start."""

import os
import signal

import polars as pl
import pytest
from training_cluster import OPTIONS, TWO, Later, check_equal, has_checkpoint

from seqrec.cluster.config import ClusterConfig
from seqrec.cluster.train import fit_on_cluster
from seqrec.data.prepare import prepare
from seqrec.errors import InputError
from seqrec.recommender import Recommender

pytestmark = pytest.mark.cluster


def test_two_workers_train_as_one_process_does(cluster, dataset, expected, tmp_path, capsys):
    out = tmp_path / "run"
    outcome = fit_on_cluster(dataset, out, TWO, "sasrec", OPTIONS)
    check_equal(out, expected)
    assert (outcome.interrupted, outcome.label, len(outcome.epochs)) == (False, "sasrec", 12)
    assert set(outcome.evaluations) == {"full", "sampled"}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]  # nothing is left beside it


def test_workers_start_from_an_earlier_run(cluster, dataset, expected, tmp_path):
    old, options = tmp_path / "old", OPTIONS | {"epochs": 3, "patience": 9}
    Recommender("sasrec", **options).fit(dataset, old)
    Recommender("sasrec", **options).fit(dataset, tmp_path / "one", init_from=old)
    fit_on_cluster(dataset, tmp_path / "run", TWO, "sasrec", options, init_from=old)
    check_equal(tmp_path / "run", pl.read_csv(tmp_path / "one/epochs.csv"))
    assert pl.read_csv(tmp_path / "run/epochs.csv")["loss"][0] < expected["loss"][1]


def test_ctrl_c_leaves_a_checkpoint_that_one_worker_resumes(cluster, dataset, expected, tmp_path):
    out = tmp_path / "run"
    presser = Later(has_checkpoint(out), lambda: os.kill(os.getpid(), signal.SIGINT))
    long = OPTIONS | {"epochs": 1000, "patience": 1000}  # so that it does not end before the signal arrives
    outcome = fit_on_cluster(dataset, out, TWO, "sasrec", long)
    presser.join()
    assert outcome.interrupted
    done = pl.read_csv(out / "epochs.csv").height
    assert done < long["epochs"]
    more = OPTIONS | {"epochs": max(done + 1, OPTIONS["epochs"]), "patience": 1000}
    again = fit_on_cluster(dataset, out, ClusterConfig("ray", workers=1), "sasrec", more, resume=True)
    assert (again.interrupted, len(again.epochs)) == (False, more["epochs"])
    check_equal(out, expected, is_longer=True)


def test_an_input_error_of_a_worker_is_one_line_here(cluster, tmp_path):
    pairs = pl.DataFrame({"user_id": [1, 1, 2, 2], "item_id": [1, 2, 2, 1], "timestamp": [1, 2, 3, 4]})
    with pytest.raises(InputError, match="so the model learns nothing") as found:
        fit_on_cluster(prepare(pairs), tmp_path / "run", TWO, "sasrec", OPTIONS)
    assert "\n" not in str(found.value)
    assert not (tmp_path / ".run.cluster").exists()
