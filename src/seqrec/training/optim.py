"""Adam for large embedding tables: equal to dense Adam, at the cost of only the rows that a step touches."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.optim.adam import adam

from seqrec import kernels
from seqrec.device import not_compiled
from seqrec.training.drift import Drift, Factors
from seqrec.training.rows import Table

#: A state with more steps than this is damaged: training that long would take years.
MOST_STEPS = 2**31 - 1


class RowAdam:
    """Adam (Kingma & Ba 2015) for a model with large embedding tables.

    Dense Adam moves every row of a table at every step: a row that no example touched still drifts on its momentum,
    which decays with ``beta1``. This drift is nine tenths of the effect that an example has on a rare row. An Adam
    that does not move untouched rows (torch's ``SparseAdam``) therefore learns rare rows ten times more slowly.
    RowAdam applies the missed drift in closed form just before a row is read again. If the row has the moments m and v
    after step s, the steps s + 1 to t together move it by

        lr * m / sqrt(v) * sum over j = s + 1 .. t of (beta1 / sqrt(beta2)) ** (j - s) * c_j,
        c_j = sqrt(1 - beta2 ** j) / (1 - beta1 ** j),

    where sqrt(v) also has epsilon added, with its weight at the middle of the sum. Epsilon matters for tiny gradients,
    and keeps rows in place whose v has underflowed to 0. The result equals dense Adam, at the cost of only the touched
    rows. Call ``catch_up`` before reading the tables outside training.

    With a ``schedule``, the learning rate of step j is f_j * lr, and c_j gets the factor f_j, so that each missed step
    moves a row at the rate of that step.

    Args:
        model: model to update. Its ``nn.Embedding(..., sparse=True)`` tables are updated by row, except in a step that
            gives them a dense gradient. All other parameters are updated densely.
        learning_rate: learning rate of the dense parameters.
        table_learning_rate: learning rate of the tables. By default ``learning_rate``.
        betas: decay rates of the first and second moment. The second must not be smaller than the first: otherwise a
            row's second moment would decay before its momentum, and epsilon would change too much within the sum.
        epsilon: number that is added to the root of the second moment.
        schedule: function that returns the factors f_j ``float64[S]`` of steps ``int64[S]``, counted from 1. By
            default every factor is 1.
    """

    def __init__(
        self,
        model: nn.Module,
        learning_rate: float = 0.001,
        table_learning_rate: float | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        schedule: Factors | None = None,
    ) -> None:
        if not 0 <= betas[0] <= betas[1] < 1:
            raise ValueError(f"betas are {betas}; the second must be at least as large as the first, and below 1")
        self.table_learning_rate = learning_rate if table_learning_rate is None else table_learning_rate
        self.betas = betas
        self.epsilon = epsilon
        self.schedule = schedule
        self.steps = 0
        self.drift = Drift(betas, schedule)
        embeddings = {
            f"{name}.weight".lstrip("."): module
            for name, module in model.named_modules()
            if isinstance(module, nn.Embedding) and module.sparse
        }
        self.tables = {name: Table(module.weight, hasattr(module, "divided")) for name, module in embeddings.items()}
        self.dense = {name: p for name, p in model.named_parameters() if name not in embeddings}
        self.learning_rate = learning_rate
        self._moments: dict[str, tuple[Tensor, Tensor, Tensor]] = {}  # first moment, second moment, number of steps
        self._known = kernels.Remembered()
        #: What ``compiled_gradients`` keeps from one step to the next, by part of the model.
        self.kept: dict[nn.Module, Any] = {}
        self._hooks = [
            module.register_forward_pre_hook(self._before_reading(self.tables[name]))
            for name, module in embeddings.items()
        ]

    def close(self) -> None:
        """Remove the hooks from the model and free all memory. The hooks would keep the moments alive."""
        self.zero_grad()
        for hook in self._hooks:
            hook.remove()
        self.tables, self.dense, self._moments, self.kept = {}, {}, {}, {}
        self._known = kernels.Remembered()

    def zero_grad(self) -> None:
        """Clear the gradients."""
        for parameter in self.dense.values():
            parameter.grad = None
        for table in self.tables.values():
            table.weight.grad = None
            table.summed = None

    def gradients(self) -> list[Tensor]:
        """All gradients, with those of tables summed by row. Clipping scales them in place."""
        dense = [p.grad for p in self.dense.values() if p.grad is not None]
        for table in self.tables.values():
            if table.weight.grad is not None:
                dense.append(table.gradient().sums if table.weight.grad.is_sparse else table.weight.grad)
        return dense

    def whole_gradients(self) -> list[Tensor]:
        """The gradients of tables that are dense, because the loss reads every row."""
        found = [table.weight.grad for table in self.tables.values()]
        return [gradient for gradient in found if gradient is not None and not gradient.is_sparse]

    def row_gradients(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Row numbers ``int64[R]`` and gradients ``float32[R, D]`` of every other table, by name."""
        return {
            name: table.exchanged()
            for name, table in self.tables.items()
            if not table.divided and (table.weight.grad is None or table.weight.grad.is_sparse)
        }

    def divided_gradients(self) -> list[Tensor]:
        """The gradients by row of tables that are divided among processes."""
        found = [table.weight.grad for table in self.tables.values() if table.divided and table.weight.grad is not None]
        return [gradient._values() for gradient in found]

    def set_row_gradients(self, name: str, rows: Tensor, gradients: Tensor) -> None:
        """Replace the gradient of a table by those of rows, which may repeat.

        The rows are brought up to date first, so that they take the same steps in processes that have not read them.
        """
        table = self.tables[name]
        table.weight.grad = torch.sparse_coo_tensor(rows[None], gradients, table.weight.shape, check_invariants=False)
        table.summed = None
        if self.steps:
            self._catch_up_rows(table, rows, self.steps)

    @torch.no_grad()
    def step(self) -> None:
        """Move the dense parameters and the touched rows."""
        self.steps += 1
        share = self.share(self.steps)
        self._step_dense(self.learning_rate * share)
        beta1, beta2 = self.betas
        rate = self.table_learning_rate * share
        size = rate / (1 - beta1**self.steps)
        root = (1 - beta2**self.steps) ** 0.5
        for table in self.tables.values():
            if table.weight.grad is None:
                continue
            if not table.weight.grad.is_sparse:  # the loss reads all rows
                self._move_all_rows(table, table.weight.grad, rate)
                continue
            if table.compiled:
                rows, gradient = table.parts()
                if self.schedule is not None:  # the loop would use the rate of this step for the missed steps too
                    self._catch_up_rows(table, rows, self.steps - 1)
                kernels.adam_step(
                    rows, gradient, self.steps, self.betas, rate, self.epsilon,
                    self.drift.tables(self.steps), table.weight, table.first, table.second, table.last, table.slots,
                )  # fmt: skip
                table.summed = None
                continue
            rows, gradient = table.gradient().by_row()
            self._catch_up_rows(table, rows, self.steps - 1)
            first = table.first[rows].lerp_(gradient, 1 - beta1)
            second = table.second[rows].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            table.first.index_copy_(0, rows, first)
            table.second.index_copy_(0, rows, second)
            change = first.div_(second.sqrt_().div_(root).add_(self.epsilon)).mul_(-size)
            table.weight.index_copy_(0, rows, table.weight[rows].add_(change))
            table.last.index_fill_(0, rows, self.steps)
            table.summed = None

    def share(self, step: int) -> float:
        """The factor of the learning rates in a step, counted from 1."""
        return 1.0 if self.schedule is None else float(self.schedule(np.array([step]))[0])

    def _step_dense(self, rate: float) -> None:
        """``torch.optim.Adam.step`` without its bookkeeping, which takes longer than the arithmetic."""
        weights: list[Tensor] = []
        gradients, moments = [], []
        for name, weight in self.dense.items():
            gradient = weight.grad
            if gradient is None:
                continue
            if name not in self._moments:
                count = torch.zeros((), device=weight.device)
                self._moments[name] = torch.zeros_like(weight.data), torch.zeros_like(weight.data), count
            weights.append(weight)
            gradients.append(gradient)
            moments.append(self._moments[name])
        if weights:
            firsts, seconds, steps = map(list, zip(*moments, strict=True))
            self._move(weights, gradients, firsts, seconds, steps, rate, self._known)

    def _move_all_rows(self, table: "Table", gradient: Tensor, rate: float) -> None:
        """One step of a table with a dense gradient."""
        for rows in table.blocks():
            self._catch_up_rows(table, rows, self.steps - 1)
        before = torch.full((), float(self.steps - 1), device=gradient.device)
        self._move([table.weight], [gradient], [table.first], [table.second], [before], rate)
        table.last.fill_(self.steps)

    def _move(
        self,
        weights: list[Tensor],
        gradients: list[Tensor],
        firsts: list[Tensor],
        seconds: list[Tensor],
        steps: list[Tensor],
        rate: float,
        known: kernels.Remembered | None = None,
    ) -> None:
        """Dense Adam; adds one to each of ``steps``."""
        if kernels.usable(*weights) and all(weight.is_contiguous() for weight in weights):
            kernels.adam_dense(weights, gradients, firsts, seconds, steps, self.betas, rate, self.epsilon, known)
            return
        adam(
            weights,
            gradients,
            firsts,
            seconds,
            [],
            steps,
            fused=True,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=rate,
            weight_decay=0.0,
            eps=self.epsilon,
            maximize=False,
        )
        increment_version(weights)  # the fused step does not

    @torch.no_grad()
    def catch_up(self) -> None:
        """Apply the missed drift to every row of every table. This costs a pass over the tables."""
        for table in self.tables.values():
            for rows in table.blocks():
                self._catch_up_rows(table, rows, self.steps)

    def table_of(self, weight: Tensor) -> str | None:
        """The name of the table with these weights; None if they are not updated by row."""
        return next((name for name, table in self.tables.items() if table.weight is weight), None)

    @torch.no_grad()
    def before_reading(self, name: str, rows: Tensor) -> None:
        """Bring rows of a table up to date, as every lookup does by itself."""
        if self.steps:
            self._catch_up_rows(self.tables[name], rows, self.steps)

    def _before_reading(self, table: "Table") -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        @not_compiled
        def bring_up_to_date(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            if module.training and self.steps:
                with torch.no_grad():
                    self._catch_up_rows(table, arguments[0].reshape(-1), self.steps)

        return bring_up_to_date

    def _catch_up_rows(self, table: "Table", rows: Tensor, step: int) -> None:
        """Bring rows (repetitions are allowed) to their state after ``step`` in dense Adam."""
        if table.compiled:
            kernels.adam_catch_up(
                rows, step, self.betas, self.table_learning_rate, self.epsilon, self.drift.tables(step), table.weight,
                table.first, table.second, table.last,
            )  # fmt: skip
            return
        last = table.last[rows]
        behind = (last < step) & (last > 0)
        if rows.device.type == "cpu":
            chosen = behind.nonzero()[:, 0]
            if len(chosen) == 0:
                return
            rows, last, behind = rows[chosen], last[chosen], behind[chosen]
        self._drift_rows(table, rows, last, behind, step)

    def _drift_rows(self, table: "Table", rows: Tensor, last: Tensor, behind: Tensor, step: int) -> None:
        """Apply the missed drift to the rows that are ``behind``, given the ``last`` step of each.

        On a GPU, ``rows`` includes the others too: to select rows, the host would have to wait for their number.
        """
        missed = torch.where(behind, step - last, 1).to(torch.float32)[:, None]
        last = torch.where(behind, last, step)
        behind = behind[:, None]
        first, second = table.first[rows], table.second[rows]
        beta1, beta2 = self.betas
        ratio = beta1 / beta2**0.5
        drift = self.drift.on(rows.device, step)
        weight = ratio**missed
        factor = drift[last][:, None] - weight * drift[step]
        # The mean of the missed steps, weighted by ratio ** (step - last).
        middle = last[:, None] + 1 / (1 - ratio) - missed * weight / (1 - weight)
        root = (1 - beta2**middle).sqrt_()
        moved = first / second.sqrt().add_(self.epsilon * root) * (-self.table_learning_rate * factor)
        # Repeated rows are written with the same values.
        weights = table.weight[rows]
        table.weight.index_copy_(0, rows, torch.where(behind, weights + moved, weights))
        table.first.index_copy_(0, rows, torch.where(behind, first * beta1**missed, first))
        table.second.index_copy_(0, rows, torch.where(behind, second * beta2**missed, second))
        table.last.index_copy_(0, rows, torch.where(behind[:, 0], step, table.last[rows]).to(torch.int32))

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that a later process needs to continue, as tensors by name."""
        state = {"steps": torch.tensor(self.steps)}
        for name, table in self.tables.items():
            state |= {f"{name}.first": table.first, f"{name}.second": table.second, f"{name}.last": table.last}
        for name, (first, second, steps) in self._moments.items():
            state |= {f"{name}.first": first, f"{name}.second": second, f"{name}.step": steps}
        return state

    def expected_state(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Tensors with the types and shapes that a state with these names must have.

        The moments of a dense parameter exist from its first gradient on, so a state may lack them.
        """
        expected = {"steps": torch.tensor(0)}
        for name, table in self.tables.items():
            expected |= {f"{name}.first": table.first, f"{name}.second": table.second, f"{name}.last": table.last}
        names = set(names)
        for name, parameter in self.dense.items():
            parts = {f"{name}.first": parameter, f"{name}.second": parameter, f"{name}.step": torch.tensor(0.0)}
            expected |= parts if names & set(parts) else {}
        return expected

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load a state from ``state_dict``.

        Everything is checked first, because the compiled loops trust the shapes and use ``last`` as an index.

        Raises:
            ValueError: the state does not fit this model.
        """
        expected = self.expected_state(state)
        for name in sorted(set(expected) | set(state)):
            if name not in state or name not in expected:
                raise ValueError(f"{name} is {'missing' if name in expected else 'unknown'}")
            found, wanted = ((x.dtype, tuple(x.shape)) for x in (state[name], expected[name]))
            if found != wanted:
                raise ValueError(f"{name} is {found[0]} {list(found[1])}, not {wanted[0]} {list(wanted[1])}")
        steps = int(state["steps"])
        if not 0 <= steps <= MOST_STEPS:
            raise ValueError(f"steps are {steps}")
        for name, value in state.items():
            part = name.rpartition(".")[2]
            low, high = (float(bound) for bound in (value.aminmax() if value.numel() else (0, 0)))
            least = {"last": 0, "step": 1, "second": 0}.get(part, -np.inf)
            most = {"last": steps, "step": steps}.get(part, np.inf)
            if not (least <= low and high <= most and np.isfinite(low) and np.isfinite(high)):
                raise ValueError(f"{name} has values from {low:g} to {high:g}")
        self.steps = steps
        for name, table in self.tables.items():
            for part in ("first", "second", "last"):
                getattr(table, part).copy_(state[f"{name}.{part}"])
        for name, parameter in self.dense.items():
            if f"{name}.first" in state:
                first, second, count = (
                    state[f"{name}.{part}"].to(parameter.device).clone() for part in ("first", "second", "step")
                )
                self._moments[name] = first, second, count


@torch.no_grad()
def clip_gradients(gradients: Iterable[Tensor], norm: float) -> None:
    """Scale gradients in place so that their joint Euclidean norm is at most ``norm``."""
    gradients = list(gradients)
    if not gradients:
        return
    total = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
    scale = (norm / (total + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(scale)
