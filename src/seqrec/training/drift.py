"""Tables of the sums by which :class:`~seqrec.training.optim.RowAdam` moves rows for the steps that they missed."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from seqrec import kernels
from seqrec.device import copied

# After this many missed steps the momentum of a row (0.9 ** 400) is below the resolution of float32.
_HORIZON = 400

#: Factors of the learning rate ``float64[S]`` at steps ``int64[S]``, which count from 1.
Factors = Callable[[np.ndarray], np.ndarray]


class Drift:
    """Tables of ``drift[s]``, the sum over j >= 1 of ``ratio ** j * c_(s + j)``, with ratio = beta1 / sqrt(beta2).

    The sum for the steps s + 1 to t is ``drift[s] - ratio ** (t - s) * drift[t]``.

    Args:
        betas: decay rates of the optimizer.
        schedule: factors of the learning rate. By default 1.
    """

    def __init__(self, betas: tuple[float, float], schedule: Factors | None) -> None:
        self.betas, self.schedule = betas, schedule
        self._steps = torch.zeros(0, 2, dtype=torch.float64)  # per step s: drift[s] and beta2 ** s
        self._missed = torch.from_numpy(_powers(*betas))
        self._copies: dict[torch.device, Tensor] = {}

    def tables(self, step: int) -> kernels.Drifts:
        """The tables for the compiled loops, up to at least ``step``."""
        if len(self._steps) <= step:
            beta1, beta2 = self.betas
            ratio = beta1 / beta2**0.5
            count = max(2 * step, 1024)
            steps = np.arange(1, count + _HORIZON + 1, dtype=np.float64)
            correction = np.sqrt(1 - beta2**steps) / (1 - beta1**steps)
            value = ratio / (1 - ratio)
            if self.schedule is not None:
                correction *= self.schedule(steps)
                value *= correction[-1]
            # drift[s] = ratio * (c_(s + 1) + drift[s + 1]), from the far end backwards.
            drift = np.zeros(count + _HORIZON + 1)
            for index in range(count + _HORIZON - 1, -1, -1):
                value = ratio * (correction[index] + value)
                drift[index] = value
            powers = beta2 ** np.arange(count + 1, dtype=np.float64)
            self._steps = torch.from_numpy(np.column_stack([drift[: count + 1], powers]))
            self._copies = {}
        return kernels.Drifts(self._steps, self._missed)

    def on(self, device: torch.device, step: int) -> Tensor:
        """The drifts up to at least ``step``, ``float32[> step]``, kept on the device so that reading needs no copy."""
        self.tables(step)
        if device not in self._copies:
            self._copies[device] = copied(self._steps[:, 0].float(), device)
        return self._copies[device]


def _powers(beta1: float, beta2: float) -> np.ndarray:
    """``float64[M, 4]``: the powers that :class:`Drift` needs for 0, 1, 2 … missed steps."""
    ratio, missed = beta1 / beta2**0.5, np.arange(_HORIZON, dtype=np.float64)
    share = ratio**missed
    with np.errstate(divide="ignore", invalid="ignore"):  # row 0 is never used
        middle = 1 / (1 - ratio) - missed * share / (1 - share)
    return np.column_stack([share, beta1**missed, beta2**missed, beta2**middle])
