"""Settings of Ray for the clusters of these tests, a cluster to train on, and what one process makes of that log."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import pytest

from seqrec.cluster.engine import import_ray
from seqrec.data.dataset import Dataset
from seqrec.data.prepare import prepare
from seqrec.recommender import Recommender

# Ray gives way to all other processes by default (niceness 15), so that on a busy machine workers would hardly start.
os.environ.setdefault("RAY_worker_niceness", "0")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without processors, so that it does not train, and two nodes with one each."""
    import ray
    from ray.cluster_utils import Cluster

    before = os.environ.get("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S")
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.3"
    import_ray()
    small = {"object_store_memory": 80 << 20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    made.nodes = [made.add_node(num_cpus=1, **small) for _ in range(2)]
    made.small = small
    ray.init(made.address, log_to_driver=False, logging_level="error")
    yield made
    ray.shutdown()
    made.shutdown()
    os.environ.pop("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S")
    if before is not None:
        os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = before


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Users who walk through the items in order, with some jumps."""
    random = np.random.default_rng(0)
    rows = []
    for user in range(120):
        steps = np.where(random.random(random.integers(6, 15)) < 0.3, random.integers(1, 20, 1), 1)
        items = (random.integers(20) + steps.cumsum()) % 20
        rows.append(pl.DataFrame({"user_id": user, "item_id": items, "timestamp": np.arange(len(items))}))
    return prepare(pl.concat(rows))


@pytest.fixture(scope="module")
def expected(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """The epochs of one process."""
    from training_cluster import OPTIONS

    out = tmp_path_factory.mktemp("one") / "run"
    Recommender("sasrec", **OPTIONS).fit(dataset, out)
    return pl.read_csv(out / "epochs.csv")
