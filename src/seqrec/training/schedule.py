"""The learning rate of each step, as a function of the step and the total number of steps."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

ScheduleName = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class Schedule:
    """Factors of the learning rate, step by step.

    The factor rises linearly over the first ``warmup`` steps and reaches 1 at the last of them. Then it stays at 1
    (``constant``), falls linearly (``linear``), or falls along half a cosine wave (``cosine``; Loshchilov & Hutter
    2017, without restarts). It would reach 0 one step after the last.

    Args:
        name: shape of the decay.
        warmup: number of warm-up steps.
        total: number of steps of the training.
    """

    name: ScheduleName
    warmup: int
    total: int

    def __call__(self, steps: np.ndarray) -> np.ndarray:
        """The factors ``float64[S]``, from 0 to 1, of steps counted from 1."""
        done = np.asarray(steps, dtype=np.float64) - 1
        rise = np.minimum((done + 1) / max(self.warmup, 1), 1.0)
        if self.name == "constant":
            return rise
        fallen = np.clip((done - self.warmup) / max(self.total - self.warmup, 1), 0.0, 1.0)
        return rise * (1 - fallen if self.name == "linear" else 0.5 * (1 + np.cos(np.pi * fallen)))


def schedule_of(name: ScheduleName, warmup: float, total: int) -> Schedule | None:
    """The schedule of a training, or None if the rate is the same at every step.

    Args:
        name: shape of the decay.
        warmup: number of warm-up steps; below 1, a share of all steps.
        total: number of steps of the training.
    """
    steps = round(warmup * total) if warmup < 1 else int(warmup)
    return None if name == "constant" and steps <= 1 else Schedule(name, steps, total)
