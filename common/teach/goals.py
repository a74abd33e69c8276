"""What a chapter's leaderboard measures; exercises/goals.py lists the goals."""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Literal


@dataclass(frozen=True)
class Goal:
    """An open-ended exercise: a quantity that is measured under a fixed budget."""

    name: str  # of the function
    quantity: str  # what is measured, as the heading of a column
    better: Literal["smaller", "larger"]
    target: float  # from which the exercise counts as solved
    budget: str  # what the measurement allows, in words
    measure: Callable[
        [ModuleType, int], float
    ]  # of the learner's functions and a seed; AssertionError where a rule is broken
    seconds: float = 60.0  # time limit of one measurement

    def reached(self, value: float) -> bool:
        return value <= self.target if self.better == "smaller" else value >= self.target
