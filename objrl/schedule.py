"""Values that change while training: pure functions of the step, never written into a module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Schedule = Callable[[float], float]


@dataclass(frozen=True)
class Linear:
    """The tables' (start → end) : (begin → finish): constant outside, a straight line within.

    `Linear(v)` is the constant v. Steps may be fractions of a run as well as counts: the unit is
    whatever the caller's `step` counts.
    """

    start: float
    end: float | None = None
    begin: float = 0
    finish: float = 0

    def __post_init__(self) -> None:
        if self.finish < self.begin:
            raise ValueError(
                f"Linear: expected begin <= finish, got {self.begin} and {self.finish}"
            )

    def __call__(self, step: float) -> float:
        """Return the value at a step."""
        if self.end is None or step <= self.begin:
            return self.start
        if step >= self.finish:
            return self.end
        done = (step - self.begin) / (self.finish - self.begin)
        return self.start + (self.end - self.start) * done
