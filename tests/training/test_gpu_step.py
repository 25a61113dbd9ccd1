"""A training step on a GPU: nothing in it waits for the device. Shown without one, on torch's device ``meta``."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from waiting import META, Waits, no_waiting, waiting_calls

from seqrec.data.negatives import Loss
from seqrec.data.split import Split
from seqrec.models import MODELS
from seqrec.models.base import Model
from seqrec.models.blocks import dropouts_of
from seqrec.models.ensemble import Ensemble
from seqrec.training.checks import objective_of
from seqrec.training.config import BETA1, TrainConfig
from seqrec.training.objective import mark_tables
from seqrec.training.optim import RowAdam
from seqrec.training.schedule import schedule_of
from seqrec.training.step import epoch_of, optimizer_step, seed_step, tasks_of

TRAINED = sorted(name for name, kind in MODELS.items() if not kind.COUNTED)
LOSSES = get_args(Loss)
#: Options that take a way through the code that the defaults do not.
OTHERS = {
    "sasrec": [{"num_heads": 2, "norm": "pre", "l2": 0.1}, {"norm": "post", "attention_dim": 4, "num_blocks": 0}],
    "gru4rec": [{"separate_output": True, "num_layers": 2}, {"elu": 0.5}],
    "caser": [{"num_targets": 2, "l2": 0.1}, {"user_dim": 0, "vertical_filters": 0}],
    "bert4rec": [{"num_heads": 1, "num_blocks": 0}],
    "tisasrec": [{"num_heads": 2, "l2": 0.1}],
    "esasrec": [{"num_heads": 2, "feedforward_dim": 12}, {"num_blocks": 0}],
    "lrurec": [{"state_dim": 3, "feedforward_dim": 5}, {"num_blocks": 0}],
    "hstu": [{"num_heads": 2, "l2": 0.1, "time_buckets": 0}, {"similarity": "dot", "num_blocks": 0}],
    "ssept": [{"sse_target": 0.2, "l2": 0.1}, {"sse_user": 0.0}],
    "slirec": [{"num_categories": 3, "category_dim": 2}],
}
CASES = [(name, loss, {}) for name in TRAINED for loss in LOSSES]
CASES += [(name, "sampled-softmax", options) for name in TRAINED for options in OTHERS[name]]
CASES += [("sasrec", "cross-entropy", {"l2": 0.1}), ("caser", "bce", {"num_targets": 2})]
#: What losses do with scores depends at most on whether these are products of vectors.
WITHOUT_A_GPU = [(name, loss, options) for name, loss, options in CASES
                 if loss == "sampled-softmax" or options or name in ("sasrec", "slirec")]  # fmt: skip
#: Two models are quick enough for every test run.
QUICK = [(name, "sampled-softmax", {}) for name in ("sasrec", "hstu")]
MARKED = [pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow) for case in WITHOUT_A_GPU]


@pytest.fixture(scope="module", autouse=True)
def _sums_of_gradients():
    """Sums with sparse gradients, which autograd takes and ``meta`` can't: CUDA adds rows by ``index_add``, or appends
    them (add_out_dense_sparse_cuda and add_out_sparse_cuda in torch), and waits for nothing."""

    def add(one, other, alpha=1):
        if not one.is_sparse:
            return torch.empty_like(one)
        parts = [
            torch.cat([f(one), f(other)], dim=d) for f, d in ((torch.Tensor._indices, 1), (torch.Tensor._values, 0))
        ]
        return torch.sparse_coo_tensor(*parts, one.shape, check_invariants=False)

    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it replaces what torch has
        library.impl("add.Tensor", add, "SparseMeta")
    yield
    library._destroy()


def built(name: str, split: Split, options: dict) -> Model:
    kind, dataset = MODELS[name], split.train.dataset
    config = kind.Config(max_length=6, embedding_dim=8, **options)
    model = kind(config, dataset.num_items, dataset.num_users)
    if options.get("num_categories"):
        model.set_categories(torch.arange(dataset.num_items + 1) % 4)
    return model


@contextmanager
def no_waiting_on_cuda() -> Iterator[None]:
    """Torch raises an error if the host waits for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def steps_on(
    device: torch.device,
    model: Model,
    split: Split,
    config: TrainConfig,
    watched: Callable[[], AbstractContextManager[None]] = nullcontext,
    steps: int = 3,
) -> list[Tensor]:
    """Take steps as the loop does, on a GPU all but the first (in which libraries start) in a context. The losses."""
    mark_tables(model)
    model.prepare_training(split.train)
    model.to(device).train()
    objective = objective_of(model, model.num_items, config)
    optimizer = RowAdam(model, 0.01, betas=(BETA1, config.beta2), schedule=schedule_of("cosine", 1, 100))
    epoch = epoch_of(model, split.train, config)
    drawn = tasks_of(model, epoch, split.train, objective, objective.sampler(split.train))
    losses: list[Tensor] = []
    for step, task in enumerate(islice(drawn, steps)):
        with watched() if step or device == META else nullcontext():
            seed_step(dropouts_of(model), epoch, step, device)
            loss = optimizer_step(model, optimizer, task, objective, device, clip_norm=1.0)
            losses.append(loss.detach())
    assert len(losses) == optimizer.steps == steps
    if config.loss != "cross-entropy":
        assert all(table.weight.grad.is_sparse for table in model.sparse_tables().values())
    return losses


def config_of(loss: Loss) -> TrainConfig:
    return TrainConfig(loss=loss, batch_size=8, negatives=None if loss in ("cross-entropy", "bce") else 12)


@pytest.mark.parametrize(("name", "loss", "options"), MARKED, ids=str)
def test_nothing_waits_for_the_device(name, loss, options, split):
    steps = 2 if name == "sasrec" else 1  # rows that a step missed are the optimizer's, the same for every model
    losses = steps_on(META, built(name, split, options), split, config_of(loss), no_waiting, steps)
    assert {value.device for value in losses} == {META}


@pytest.mark.slow
def test_nothing_waits_in_an_ensemble_and_with_negatives_by_popularity(split):
    model = Ensemble([built(name, split, {}) for name in ("sasrec", "ssept", "gru4rec")])
    steps_on(META, model, split, TrainConfig(batch_size=8, negatives=12, popularity=0.5), no_waiting)


@pytest.mark.parametrize("loss", ["sampled-softmax", "cross-entropy"])
def test_nothing_waits_in_blocks_of_half_precision(loss, split, monkeypatch):
    """There is no autocast on ``meta``, so the losses are told of it. Several blocks per step."""
    monkeypatch.setattr("seqrec.training.losses._autocast_kind", lambda x: torch.bfloat16)
    monkeypatch.setattr("seqrec.training.losses._CELLS_OF_A_GPU", 1)
    steps_on(META, built("gru4rec", split, {}), split, config_of(loss), no_waiting)


@pytest.mark.cuda
@pytest.mark.parametrize(("name", "loss", "options"), CASES, ids=str)
def test_nothing_waits_for_a_gpu(name, loss, options, split):
    losses = steps_on(torch.device("cuda"), built(name, split, options), split, config_of(loss), no_waiting_on_cuda)
    assert torch.stack(losses).isfinite().all()


@pytest.mark.cuda
@pytest.mark.parametrize(("name", "loss", "options"), CASES, ids=str)
def test_a_gpu_takes_the_steps_of_the_cpu(name, loss, options, split):
    """Without dropout, and within bfloat16's precision."""
    found = []
    for device in (torch.device("cpu"), torch.device("cuda")):
        torch.manual_seed(0)
        model = built(name, split, options)
        for dropout in dropouts_of(model):
            dropout.probability = 0.0
        found.append(torch.stack(steps_on(device, model, split, config_of(loss))).cpu())
    torch.testing.assert_close(found[1].float(), found[0].float(), rtol=0.02, atol=1e-3)


@pytest.mark.slow_but_one
@pytest.mark.parametrize("name", ["sasrec", "ssept", "bert4rec", "esasrec"])
def test_nothing_waits_in_attention_without_padding(name, split, monkeypatch):
    """Torch takes its fused kernels on ``meta`` if it counts operations."""
    monkeypatch.setattr("seqrec.models.packed._has_fused_kernels", lambda device: True)
    with FlopCounterMode(display=False) as counter:
        steps_on(META, built(name, split, {"num_heads": 1}), split, config_of("sampled-softmax"), no_waiting, steps=2)
    counts = {str(operation): count for operation, count in counter.get_flop_counts()["Global"].items()}
    assert counts["aten._flash_attention_forward"] > 0
    assert counts["aten._flash_attention_backward"] > 0


@pytest.mark.parametrize("call", [pytest.param(call, id=name) for name, call in waiting_calls()])
def test_what_waits_is_found(call):
    x = torch.arange(5, device=META)
    with pytest.raises((Waits, TypeError)), no_waiting():
        call(x)
