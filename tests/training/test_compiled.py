"""A whole forward and backward pass in one compiled call, against torch in float64."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from seqrec.data.batches import Batch
from seqrec.data.draws import Draws, Part
from seqrec.device import threads
from seqrec.models.blocks import dropouts_of, seed_dropout
from seqrec.models.ensemble import Ensemble
from seqrec.models.hstu import HSTU, HSTUConfig
from seqrec.models.sasrec import SASRec, SASRecConfig
from seqrec.training.compiled import compiled_gradients
from seqrec.training.objective import Objective, Task, mark_tables, training_loss
from seqrec.training.optim import RowAdam

pytestmark = pytest.mark.loops

ITEMS = 40
LENGTHS = [1, 7, 150, 3, 12, *[5] * 40]  # one longer than a chunk, and several that share one
BCE, SOFTMAX = Objective("bce", 2, 0.0, 0.0), Objective("sampled-softmax", 30, 0.0, 0.0)


def task_of(objective: Objective, popular: bool = False) -> Task:
    random = torch.Generator().manual_seed(0)
    count = sum(LENGTHS)
    offsets = torch.tensor([0, *np.cumsum(LENGTHS).tolist()])
    items, targets = (torch.randint(1, ITEMS + 1, (count,), generator=random) for _ in range(2))
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    batch = Batch(items, targets, positions, offsets, torch.arange(len(LENGTHS)), torch.zeros_like(items))
    if objective.loss == "bce":
        return Task(batch, None, torch.randint(1, ITEMS + 1, (count, 1 + (objective.negatives or 0)), generator=random))
    shared = torch.randperm(ITEMS, generator=random)[: objective.negatives] + 1
    token, negative = torch.nonzero(targets[:, None] == shared, as_tuple=True)
    token, negative = torch.cat([torch.zeros_like(shared), token]), torch.cat([torch.arange(len(shared)), negative])
    correction = torch.randn(len(shared), generator=random) if popular else None
    return Task(batch, None, targets, shared, (token, negative), correction)  # the first token has no negative left


def model_of(seed: int = 0, **sizes) -> SASRec:
    torch.manual_seed(seed)
    model = SASRec(SASRecConfig(max_length=150, **sizes), ITEMS).train()
    for parameter in model.parameters():  # including norms and biases, whose initial values are 1 and 0
        nn.init.normal_(parameter, mean=0.1, std=0.3)
    mark_tables(model)
    return model


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert None not in found.values()
    return {name: one.to_dense() if one.is_sparse else one.clone() for name, one in found.items()}


PART = Part(np.array([9, *LENGTHS, 4]), 1, 1 + len(LENGTHS), 1)


@pytest.mark.parametrize(
    ("objective", "sizes", "crew", "part"),
    [
        (BCE, {"embedding_dim": 12, "dropout": 0.4}, 1, None),
        (BCE, {"embedding_dim": 34, "num_heads": 2, "norm": "pre", "feedforward_dims": (5,), "dropout": 0.0}, 3, None),
        (BCE, {"embedding_dim": 8, "num_blocks": 0, "dropout": 0.5}, 2, PART),
        (SOFTMAX, {"embedding_dim": 12, "num_heads": 3, "norm": "post", "dropout": 0.4}, 3, PART),
        (SOFTMAX, {"embedding_dim": 33, "num_blocks": 1, "dropout": 0.0}, 1, None),
    ],
)
@pytest.mark.parametrize("members", [1, 2])
def test_loss_and_gradients_are_those_of_torch_in_float64(objective, sizes, crew, part, members):
    task = task_of(objective, popular=crew == 1)
    parts = [model_of(seed, **sizes) for seed in range(members)]
    model = parts[0] if members == 1 else Ensemble(parts)
    if members > 1:
        task = Task(*(getattr(task, name) for name in ("batch", "tokens", "items", "shared", "left_out", "correction")),
                    others=(task.batch,))  # fmt: skip
    optimizer = RowAdam(model, 0.01)
    found, used = [], []
    with threads(crew):
        for way in ("compiled", "compiled", "torch"):
            optimizer.zero_grad()
            model.to(torch.float64 if way == "torch" else torch.float32)
            draws = Draws([1], part)
            seed_dropout(dropouts_of(model), draws)
            if way == "compiled":
                loss = compiled_gradients(model, optimizer, task, objective, 7)
                assert loss is not None
            else:
                loss = training_loss(model, task, objective, torch.device("cpu"))
                loss.backward(loss.new_full((), 7))
            found.append({"loss": loss.detach()} | gradients_of(model))
            used.append(draws.words("rows", 3 if part is None else len(LENGTHS)).tolist())
    assert used[0] == used[2]  # both have drawn the same random numbers
    for name, expected in found[2].items():
        assert torch.equal(found[0][name], found[1][name])
        error = (found[0][name].double() - expected).abs().max() / expected.abs().max().clamp_min(1e-3)
        assert error < 2e-5, name


def doubled(model: SASRec) -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model.blocks[0].attention.query = Doubled(12, 12)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("sizes", "objective", "change"),
    [
        ({"l2": 0.1}, BCE, None),
        ({"features": "genre", "num_codes": 3}, BCE, None),
        ({"user_features": "age", "num_user_codes": 3}, BCE, None),
        ({"attention_dim": 24}, BCE, None),
        ({"feedforward_dims": (8, 8)}, BCE, None),
        ({}, Objective("gbce", 30, 0.0, 0.0), None),
        ({}, Objective("cross-entropy", None, 0.0, 0.0), None),
        ({}, BCE, doubled),
        ({}, BCE, lambda model: model.position_embedding.weight.requires_grad_(False)),
        ({}, BCE, lambda model: model.double()),
    ],
)
def test_what_the_compiled_call_does_not_compute_takes_the_usual_way(sizes, objective, change):
    model = model_of(embedding_dim=12, dropout=0.0, **sizes)
    if change is not None:
        change(model)
    assert compiled_gradients(model, RowAdam(model), task_of(objective), objective, None) is None
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("change", [
    lambda model: model.position_embedding.weight.requires_grad_(False), lambda model: model.double(),
    lambda model: model.eval(), lambda model: setattr(model.dropout, "probability", 0.1),
])  # fmt: skip
def test_a_model_that_changes_between_two_steps_takes_the_usual_way(change):
    model, task = model_of(embedding_dim=12, dropout=0.0), task_of(BCE)
    optimizer = RowAdam(model)
    assert compiled_gradients(model, optimizer, task, BCE, None) is not None
    optimizer.zero_grad()
    change(model)
    assert compiled_gradients(model, optimizer, task, BCE, None) is None
    assert all(parameter.grad is None for parameter in model.parameters())


def test_other_models_and_chosen_tokens_take_the_usual_way():
    task = task_of(BCE)
    other = HSTU(HSTUConfig(max_length=150, embedding_dim=12, time_buckets=0), ITEMS).train()
    model = model_of(embedding_dim=12, dropout=0.0)
    some = Task(task.batch, torch.arange(3), task.items[:3])
    for one, given in ((other, task), (model, some)):
        mark_tables(one)
        assert compiled_gradients(one, RowAdam(one), given, BCE, None) is None
    assert compiled_gradients(model, RowAdam(model), task, BCE, None) is not None
