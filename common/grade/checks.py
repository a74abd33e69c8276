"""What the checks of an exercise are written with, and the verdict on one exercise.

A check is a function of (submission, rng) that raises an AssertionError whose message teaches: it says what probably
went wrong, not only that something did.
"""

import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from common.grade.stubs import strip
from common.grade.submission import UnreadableSubmission, place_of, read_code
from common.random import generator

ROUNDS = 3  # of a randomised check
NUMBERS = {0: "none", 1: "one", 2: "two", 3: "three", 4: "four"}


@dataclass(frozen=True)
class Exercise:
    name: str  # of the function to write
    points: int
    check: Callable[[ModuleType, torch.Generator], None]  # randomised; raises AssertionError
    rounds: int = ROUNDS  # of the check; 1 for a goal that takes seconds and is the same each time


class Chapter(NamedTuple):
    """A chapter's exercises: solutions.py, test_exercises.py (public) and checks.py (hidden)."""

    exercises: list[Exercise]
    solutions: ModuleType
    tests: ModuleType
    stub: ModuleType  # what learners get: exercises.py before they touch it

    def public_tests(self, number: int) -> list[Callable[[ModuleType], None]]:
        """The learner's own tests of one exercise: the functions test_<number>_... of test_exercises.py."""
        return [test for name, test in vars(self.tests).items() if name.startswith(f"test_{number}_")]


def load(path: Path, name: str) -> ModuleType:
    """Run a Python file, or the code cells of a notebook, as a new module, every time anew,
    leaving no compiled copy behind.
    """
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    vars(module)["display"] = lambda *_, **__: None  # what a notebook calls to show something
    for code in read_code(path):
        exec(code, module.__dict__)
    return module


def load_chapter(folder: Path) -> Chapter:
    """folder: the chapter's exercises/."""
    checks, solutions, tests = (
        load(folder / f"{name}.py", f"course_{name}") for name in ("checks", "solutions", "test_exercises")
    )
    stub = ModuleType("course_stub")
    stub.__file__ = str(folder / "exercises.py")
    exec(strip((folder / "solutions.py").read_text(encoding="utf-8")), vars(stub))
    return Chapter(checks.EXERCISES, solutions, tests, stub)


# ------------------------------------------------------------------------------------------------ for use in checks


def integer(rng: torch.Generator, low: int, high: int) -> int:
    """From low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=rng))


def uniform(rng: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=rng))


def expect(got: object, right: Tensor, hint: str, wrong: dict[str, Tensor] | None = None, atol: float = 1e-4) -> None:
    """Raise an AssertionError unless `got` is `right`.

    hint   what to say when it is not
    wrong  what to say instead when `got` is one of these well-known wrong results. {message: result}
    """
    __tracebackhide__ = True
    assert got is not None, "a tensor was expected here, not None: is a `return` missing?"
    assert isinstance(got, Tensor), f"a tensor was expected here, not {type(got).__name__}"
    assert got.shape == right.shape, f"the shape should be {tuple(right.shape)}, not {tuple(got.shape)}"
    assert got.dtype == right.dtype, f"the type should be {right.dtype}, not {got.dtype}"
    if close(got, right, atol):
        return
    for message, value in (wrong or {}).items():
        assert not close(got, value, atol), message
    assert torch.isfinite(got).all(), f"{hint} (the result holds NaN or infinity)"
    raise AssertionError(f"{hint} (the largest difference is {(got - right).abs().max().item():.3g})")


def parts(got: object, n: int, what: str) -> tuple:
    """The n values that a function returned as a tuple or a list. what: their names, "x and v"."""
    __tracebackhide__ = True
    wanted = f"{NUMBERS.get(n, n)} values were expected here, {what}"
    assert got is not None, f"{wanted}, not None: is a `return` missing?"
    assert isinstance(got, Sequence) and not isinstance(got, str), (
        f"{wanted}, not one {type(got).__name__}: return them with a comma between"
    )
    assert len(got) == n, f"{wanted}, not {NUMBERS.get(len(got), len(got))}"
    return tuple(got)


def close(a: Tensor, b: Tensor, atol: float = 1e-4) -> bool:
    """Equal but for rounding."""
    return a.shape == b.shape and torch.allclose(a, b.to(a.dtype), rtol=1e-3, atol=atol)


def call(function: Callable, *args: Any) -> Any:
    """function(*args), making sure that it leaves the tensors it was given as they were."""
    __tracebackhide__ = True
    before = [arg.clone() if isinstance(arg, Tensor) else arg for arg in args]
    result = function(*args)
    for name, old, new in zip(inspect.signature(function).parameters, before, args, strict=False):
        if isinstance(new, Tensor):
            assert torch.equal(old, new), (
                f"{function.__name__} changes its argument {name} in place; `x = x * 2` makes a new tensor, whereas `x *= 2` does not"
            )
    return result


# ------------------------------------------------------------------------------------------------------ the verdict


def verdict(chapter: Chapter, number: int, submission: ModuleType, seed: int) -> str:
    """Check one exercise of a freshly loaded submission. "" if it is right, else what is wrong with it.

    All other exercises of the submission are replaced by the solutions, so that a mistake costs its points once.
    """
    exercise = chapter.exercises[number - 1]
    if not callable(getattr(submission, exercise.name, None)):
        return f"the file has no function named {exercise.name}"
    mine, file = getattr(submission, exercise.name), Path(str(submission.__file__))
    lend(chapter, submission, exercise.name)
    reset_torch()
    try:
        if untouched(mine, getattr(chapter.stub, exercise.name), file):
            return "not solved yet"
        for test in chapter.public_tests(number):
            test(submission)
        rng = generator(seed, number)
        for _ in range(exercise.rounds):
            exercise.check(submission, rng)
    except BaseException as problem:  # also SystemExit and KeyboardInterrupt, which a submission may raise
        return explain(problem, file)
    return ""


def untouched(mine: Callable, given: Callable, file: Path) -> bool:
    """Whether a function of this file is still the stub. A given program's fault is then left for the learner to find."""
    code = getattr(inspect.unwrap(mine), "__code__", None)
    if code is None or not place_of(code.co_filename, 1, file):
        return False
    return instructions(code) == instructions(inspect.unwrap(given).__code__)


def instructions(code: CodeType) -> tuple:
    """What a function does, without regard to comments, layout and place in the file."""
    constants = [instructions(each) if isinstance(each, CodeType) else repr(each) for each in code.co_consts]
    return code.co_code, code.co_names, code.co_varnames, constants


def lend(chapter: Chapter, submission: ModuleType, name: str) -> None:
    """Replace all exercises of the submission but the one of this name by the solutions."""
    for other in chapter.exercises:
        if other.name != name:
            setattr(submission, other.name, getattr(chapter.solutions, other.name))


def reset_torch() -> None:
    """Undo settings that the code of another exercise may have left behind."""
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.manual_seed(0)


def explain(problem: BaseException, file: Path) -> str:
    """What went wrong in this submission, in one line."""
    if isinstance(problem, NotImplementedError) and str(problem).startswith("exercise"):
        return "not solved yet"
    if isinstance(problem, UnreadableSubmission):
        return str(problem)
    frames = traceback.extract_tb(problem.__traceback__)
    places = [place_of(frame.filename, frame.lineno, file) for frame in frames]
    if isinstance(problem, AssertionError) and not places[-1]:
        return one_line(problem)
    if isinstance(problem, SyntaxError) and (place := place_of(problem.filename, problem.lineno, file)):
        return f"{place}: {one_line(problem.msg)}"
    places = [place for place in places if place]
    where = f"your code stopped in {places[-1]}" if places else "the check of your result stopped"
    return f"{where} with {type(problem).__name__}: {one_line(problem)}".removesuffix(": ")


def one_line(message: object, limit: int = 300) -> str:
    text = " ".join(str(message).split())
    return text if len(text) <= limit else text[:limit] + " ..."
