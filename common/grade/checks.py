"""What the checks of an exercise are written with, and the verdict on one exercise.

A check is a function of (submission, rng) that raises an AssertionError whose message teaches: it says what probably
went wrong, not only that something did.
"""

import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from functools import reduce
from numbers import Number
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from common.grade.sandbox.protocol.wire import ChannelError
from common.grade.sandbox.source import UnreadableSubmission, place_of, read_code
from common.grade.stubs import strip
from common.io.files import read_json
from common.random import generator

NUMBERS = {0: "none", 1: "one", 2: "two", 3: "three", 4: "four"}


@dataclass(frozen=True)
class Exercise:
    name: str  # of the function to write
    points: int
    check: Callable[[ModuleType, torch.Generator], None]  # randomised; raises AssertionError
    rounds: int = 1  # of the check; more where a single one may miss a mistake
    goal: bool = False  # whether the check measures what the learner's own method reaches, which may take seconds
    covers_public: bool = False  # whether the check is the public tests with other data: if it passes, so do they


class Chapter(NamedTuple):
    """A chapter's exercises: solutions.py, test_exercises.py (public) and checks.py (hidden)."""

    exercises: list[Exercise]
    solutions: ModuleType
    tests: ModuleType
    stub: ModuleType  # what learners get: exercises.py before they touch it
    stub_text: str = ""
    hidden: bool = True  # whether there are hidden checks; a handout has none

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
    """folder: the chapter's exercises/. In a handout it has no solutions and no checks, but exercises.json."""
    if not (folder / "checks.py").is_file():
        return load_handout(folder)
    checks, solutions, tests = (
        load(folder / f"{name}.py", f"course_{name}") for name in ("checks", "solutions", "test_exercises")
    )
    stub = ModuleType("course_stub")
    stub.__file__ = str(folder / "exercises.py")
    text = strip((folder / "solutions.py").read_text(encoding="utf-8"))
    exec(text, vars(stub))
    return Chapter(checks.EXERCISES, solutions, tests, stub, text)


def load_handout(folder: Path) -> Chapter:
    """A chapter with its public tests alone."""
    known = read_json(folder / "exercises.json")
    exercises = [Exercise(each["name"], each["points"], lambda answers, rng: None) for each in known["exercises"]]
    stub = ModuleType("course_stub")
    stub.__file__ = str(folder / "exercises.py")
    exec(known["stub"], vars(stub))
    tests = load(folder / "test_exercises.py", "course_test_exercises")
    return Chapter(exercises, ModuleType("no_solutions"), tests, stub, known["stub"], hidden=False)


# ------------------------------------------------------------------------------------------------ for use in checks


def integer(rng: torch.Generator, low: int, high: int) -> int:
    """From low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=rng))


def uniform(rng: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=rng))


def tensor(got: object, right: Tensor) -> Tensor:
    """The result as a tensor of the shape of `right`; else an AssertionError that says what came instead.

    A wider floating-point type than that of `right` is accepted: nothing is lost in it.
    """
    __tracebackhide__ = True
    assert got is not None, "a tensor was expected here, not None: is a `return` missing?"
    assert isinstance(got, Tensor), f"a tensor was expected here, {what_came(got)}"
    assert got.shape == right.shape, f"the shape should be {tuple(right.shape)}, not {tuple(got.shape)}"
    wider = (
        got.is_floating_point()
        and right.is_floating_point()
        and torch.finfo(got.dtype).eps <= torch.finfo(right.dtype).eps
    )
    assert wider or got.dtype == right.dtype, f"the type should be {right.dtype}, not {got.dtype}"
    return got


def what_came(got: object) -> str:
    """What a function returned instead of a tensor, and how it becomes one."""
    kind = type(got).__name__
    if isinstance(got, bool | str | dict | set) or callable(got):
        return f"not {kind}"
    if isinstance(got, Number):
        return f"not the number {got} ({kind}): float(), .item() and math functions leave no tensor and no gradient"
    if isinstance(got, list | tuple):
        return f"not a {kind} of {len(got)}: torch.stack, torch.cat or torch.tensor makes one tensor of it"
    if kind == "ndarray":
        return "not a NumPy array: torch.from_numpy makes a tensor of it"
    if isinstance(got, Iterable):
        return f"not a {kind}: run through it, and make one tensor of what it yields"
    return f"not {kind}"


def expect(
    got: object,
    right: Tensor,
    hint: str,
    wrong: Mapping[str, Tensor | Callable[[], Tensor]] | None = None,
    atol: float = 1e-4,
    again: Callable[[], object] | None = None,
) -> None:
    """Raise an AssertionError unless `got` is `right`.

    hint   what to say when it is not
    wrong  what to say instead when `got` is one of these well-known wrong results. {message: result}, where the result
           may be a function that computes it, which is called only if `got` is wrong
    again  computes `got` once more, to see whether random numbers are to blame; not needed for a result of call()
    """
    __tracebackhide__ = True
    again = again or (last_call.again if got is last_call.result else None)
    got = tensor(got, right)
    if close(got, right, atol):
        return
    for message, value in (wrong or {}).items():
        assert not close(got, value() if callable(value) else value, atol), message
    assert not ((right.abs() < 1).any() and close(got, right.clamp(-1, 1), atol)), (
        "you clipped the result to [-1, 1], which is not asked for: only finished images have that range"
    )
    assert again is None or same_again(again, got), (
        "two calls with the same arguments give different results: draw no random numbers of your own, "
        "use those that are given"
    )
    assert torch.isfinite(got).all(), f"{hint} (the result holds NaN or infinity)"
    raise AssertionError(f"{hint} (the largest difference is {(got - right).abs().max().item():.3g})")


def same_again(again: Callable[[], object], got: Tensor) -> bool:
    """Whether the same call gives the same result, as far as it gives one."""
    try:
        twice = again()
    except Exception:  # a network that allows so many evaluations only
        return True
    return not isinstance(twice, Tensor) or close(twice.nan_to_num(), got.nan_to_num())


def expect_gradients(got: object, right: Tensor, inputs: dict[str, Tensor], wrong: str = "") -> None:
    """Raise an AssertionError unless `got` has the gradients of `right`.

    inputs  everything that should learn, {name: tensor that requires a gradient}; both results are computed from these
    wrong   what to say where a gradient reaches the input, but is another one
    """
    __tracebackhide__ = True
    got, of = tensor(got, right), list(inputs.values())
    along = torch.randn(right.shape, generator=generator(0)).to(right.dtype)  # a random direction: no cancelling
    goals = torch.autograd.grad(right, of, along, retain_graph=True)
    assert got.requires_grad, (
        f"no gradient flows from the result to {reduce(lambda first, others: f'{first}, {others}', inputs)}: "
        "is there an .item(), .detach(), .data, torch.tensor(...) or torch.no_grad() on the way?"
    )
    try:
        found = torch.autograd.grad(got, of, along.to(got.dtype), retain_graph=True, allow_unused=True)
    except RuntimeError as problem:
        raise AssertionError(f"the gradient of the result cannot be computed: {one_line(problem)}") from None
    for name, gradient, goal in zip(inputs, found, goals, strict=True):
        assert gradient is not None and (gradient.any() or not goal.any()), (
            f"no gradient reaches {name}, which therefore never learns: is there an .item(), .detach(), .data, "
            "torch.tensor(...) or torch.no_grad() on the way? requires_grad_() afterwards does not bring the graph back"
        )
        assert close(gradient, goal, 1e-4 * max(1.0, float(goal.abs().max()))), wrong or (
            f"the result is right, but its gradient with respect to {name} is not: is a part of it detached?"
        )


def number(got: object, what: str = "one number") -> Tensor:
    """A result that may be a float, a NumPy number, or a tensor or array with one element. () float64"""
    __tracebackhide__ = True
    assert got is not None, f"{what} was expected here, not None: is a `return` missing?"
    if isinstance(got, Tensor):
        assert got.numel() == 1, f"{what} was expected here, not a tensor of the shape {tuple(got.shape)}"
        return got.detach().cpu().double().reshape(())
    try:
        return torch.tensor(float(got), dtype=torch.float64)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise AssertionError(f"{what} was expected here, not {type(got).__name__}") from None


def numbers(got: object, n: int, what: str) -> Tensor:
    """n numbers that were returned as any sequence, or as one tensor or array. (n,) float64"""
    __tracebackhide__ = True
    if isinstance(got, Tensor) and got.dim() == 1:
        got = got.tolist()
    return torch.stack([number(each) for each in parts(got, n, what)])


def parts(got: object, n: int, what: str) -> tuple:
    """The n values that a function returned, as a tuple, a list or whatever else Python unpacks in order.
    what: their names, "x and v".
    """
    __tracebackhide__ = True
    wanted = f"{NUMBERS.get(n, n)} values were expected here, {what}"
    assert got is not None, f"{wanted}, not None: is a `return` missing?"
    assert isinstance(got, Iterable) and not isinstance(got, str | Tensor | Mapping | Set), (
        f"{wanted}, not one {type(got).__name__}: return them with a comma between"
    )
    values = tuple(got)
    assert len(values) == n, f"{wanted}, not {NUMBERS.get(len(values), len(values))}"
    return values


def close(a: Tensor, b: Tensor, atol: float = 1e-4) -> bool:
    """Equal but for rounding."""
    if a.dtype == b.dtype and torch.equal(a, b):  # which takes a tenth of the time of allclose
        return True
    return a.shape == b.shape and torch.allclose(a, b.to(a.dtype), rtol=1e-3, atol=atol)


class LastCall:
    """The last result of call(), and how to compute it once more."""

    result: object = None
    again: Callable[[], object] | None = None


last_call = LastCall()


def call(function: Callable, *args: Any) -> Any:
    """function(*args), making sure that it leaves the tensors and lists it was given as they were."""
    __tracebackhide__ = True
    before = [kept(arg) for arg in args]
    result = function(*args)
    draws = any(isinstance(arg, torch.Generator) for arg in args)  # the next call would draw other numbers
    last_call.result, last_call.again = result, None if draws else lambda: function(*args)
    name = getattr(function, "__name__", getattr(function, "name", "the function"))
    for place, (old, new) in enumerate(zip(before, args, strict=True)):
        if unchanged(old, new):
            continue
        argument = argument_name(function, place)
        if isinstance(new, list | dict):
            how = "append, +=, pop and sort" if isinstance(new, list) else "pop, update and [key] = ..."
            raise AssertionError(
                f"{name} changes its argument {argument}{shown(new)}, which belongs to the caller: "
                f"{how} change a {type(new).__name__} in place; build a new one"
            )
        if isinstance(old, Tensor) and unchanged(old, new.detach().requires_grad_(old.requires_grad)):
            raise AssertionError(
                f"{name} changes its argument {argument}: requires_grad_() stays set; "
                f"use {argument}.detach().clone().requires_grad_()"
            )
        raise AssertionError(
            f"{name} changes its argument {argument} in place; `x = x * 2` makes a new tensor, whereas `x *= 2` does not"
        )
    return result


def kept(value: object) -> object:
    """A copy of a tensor or a list, to compare it with later."""
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, list):
        return [kept(each) for each in value]
    if isinstance(value, dict):
        return {key: kept(each) for key, each in value.items()}
    return value


def unchanged(old: object, new: object) -> bool:
    """Whether `new`, once copied by kept() as `old`, is still what it was. NaN is equal to itself."""
    if isinstance(old, Tensor) and isinstance(new, Tensor):
        flags = (old.shape, old.dtype, old.requires_grad) == (new.shape, new.dtype, new.requires_grad)
        return flags and (torch.equal(old, new) or bool(((old == new) | ((old != old) & (new != new))).all()))
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(unchanged, old, new))
    if isinstance(old, dict) and isinstance(new, dict):
        return list(old) == list(new) and all(unchanged(old[key], new[key]) for key in old)
    return old is new or isinstance(old, str | Number) and old == new


def shown(value: list | dict) -> str:
    """A changed list in words, if it is short."""
    text = repr(value)
    return f" to {text}" if len(text) < 100 and "tensor" not in text else ""


def argument_name(function: Callable, place: int) -> str:
    """The name of a function's argument, or its number where the function does not tell, as compiled ones do not."""
    try:
        parameter = list(inspect.signature(function).parameters.values())[place]
    except (TypeError, ValueError, IndexError):
        return f"number {place + 1}"
    return parameter.name if parameter.kind is parameter.POSITIONAL_OR_KEYWORD else f"number {place + 1}"


def make_level(ex: object, alpha: float, sigma: float, own: Callable[[float, float], Any]) -> Any:
    """A noise level of the submission's class Level, or of one's `own` where the file has none."""
    return getattr(ex, "Level", own)(alpha, sigma)


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
        run_checks(chapter, number, submission, seed, [False])
    except BaseException as problem:  # also SystemExit and KeyboardInterrupt, which a submission may raise
        return explain(problem, file)
    return ""


def run_checks(chapter: Chapter, number: int, answers: ModuleType, seed: int, public: list[bool]) -> None:
    """Run the tests and the randomised checks of one exercise, which raise an exception if an answer is wrong.
    public[0] becomes True when the public tests have passed.
    """
    exercise, rng = chapter.exercises[number - 1], generator(seed, number)

    def run_public() -> None:
        for test in chapter.public_tests(number):
            test(answers)
        public[0] = True

    def run_hidden() -> None:
        for _ in range(exercise.rounds):
            exercise.check(answers, rng)

    if not (exercise.covers_public and chapter.hidden):
        run_public()
        run_hidden()
        return
    try:
        run_hidden()
    except ChannelError:  # no process is left that could be asked again
        raise
    except Exception:
        run_public()  # what they say is simpler, and passing them counts
        raise


def untouched(mine: Callable, given: Callable, file: Path) -> bool:
    """Whether a function of this file is still the stub. A given program's fault is then left for the learner to find."""
    code = getattr(inspect.unwrap(mine), "__code__", None)
    if code is None or not place_of(code.co_filename, 1, file):
        return False
    return instructions(code, mine.__doc__) == instructions(inspect.unwrap(given).__code__, given.__doc__)


def instructions(code: CodeType, doc: str | None = None) -> tuple:
    """What a function does, without regard to its docstring, comments, layout and place in the file."""
    constants = [
        instructions(each) if isinstance(each, CodeType) else repr(each)
        for each in code.co_consts
        if doc is None or each != doc
    ]
    return code.co_code, code.co_names, code.co_varnames, constants


def lend(chapter: Chapter, submission: ModuleType, name: str) -> None:
    """Replace all exercises of the submission but the one of this name by the solutions."""
    for other in chapter.exercises:
        if other.name != name and hasattr(chapter.solutions, other.name):
            setattr(submission, other.name, getattr(chapter.solutions, other.name))


def reset_torch() -> None:
    """Undo settings that the code of another exercise may have left behind."""
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.default_generator.manual_seed(0)


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
