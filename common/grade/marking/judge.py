"""Judges submissions. The checks and the solutions are here; the submission is in another process (sandbox/).

A submission is loaded once. Its exercises are checked one after the other, and where one of them hangs or ends the
process, a new process goes on with the next.
"""

import gc
import importlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NoReturn

import torch

from common.grade.chapter import COURSE
from common.grade.checks import Chapter, load_chapter, one_line, reset_torch, run_checks
from common.grade.marking.results import Findings, Limits, Result, Work
from common.grade.sandbox.protocol.errors import Raised
from common.grade.sandbox.protocol.peer import Peer
from common.grade.sandbox.protocol.tensors import Out
from common.grade.sandbox.protocol.wire import Channel, ChannelError
from common.grade.sandbox.source import likeness, survey
from common.grade.sandbox.warm import Forks, Spawns, WarmProcess

# ---------------------------------------------------------------------------------------------------- one submission


class Answers(ModuleType):
    """The functions of a submission, each of which runs in the submission's process."""

    def __init__(self, submission: "Submission") -> None:
        super().__init__("submission")
        self.__dict__.update(_submission=submission, _peer=submission.peer)

    def in_another_process(self, name: str, *args: Any) -> Any:
        """What a function of the submission returns in a fresh process, whose texts have other hash values."""
        another = self._submission.elsewhere()
        another.peer.forget()
        another.peer.ask({"op": "exercise", "lent": another.peer.encode({}, Out())}, Out())
        return getattr(Answers(another), name)(*args)

    def __getattr__(self, name: str) -> Any:
        out = Out()
        found, value = self._peer.ask({"op": "get", "name": name}, out)
        if not found:
            raise AttributeError(f"the file has no function named {name}")
        self.__dict__[name] = value
        return value


OTHERS: list[WarmProcess] = []  # one, once it is needed


def other_forks() -> Forks | Spawns:
    """Where processes with another PYTHONHASHSEED come from."""
    if not hasattr(os, "fork"):
        return Spawns(COURSE, hash_seed=1)
    if not OTHERS:
        OTHERS.append(WarmProcess(COURSE, hash_seed=1).__enter__())
        OTHERS[0].forks.end(-1)  # answered once the process has started
    return OTHERS[0].forks


@lru_cache
def prepare(folder: Path) -> None:
    """Start and import what a chapter's checks need before the time of a submission runs."""
    path = folder / "checks.py"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if "torch.optim" in text:
        importlib.import_module("torch._dynamo")  # which the first optimizer would import
    if "in_another_process" in text:
        other_forks()


class Submission:
    """A submission in a process of its own."""

    def __init__(self, forks: Forks | Spawns, work: Work, chapter: Chapter, limits: Limits, end: float) -> None:
        self.forks, self.work, self.chapter, self.limits, self.end = forks, work, chapter, limits, end
        self.report, self.problem = Findings(), ""
        self.untouched: list[str] = []
        self.another: Submission | None = None

    def __enter__(self) -> "Submission":
        connection, self.pid = self.forks.fork({"do": "guest"})
        self.peer = Peer(Channel(connection), judge=True)
        self.peer.records = {
            name: each for name, each in vars(self.chapter.solutions).items() if hasattr(each, "_fields")
        }
        return self

    def __exit__(self, *_: object) -> None:
        if self.another:
            self.another.__exit__()
        self.peer.channel.close()
        with suppress(OSError):
            self.forks.end(self.pid)

    def elsewhere(self) -> "Submission":
        """The same file in a second process, whose texts have other hash values."""
        end = self.peer.channel.deadline or self.end
        if self.another is None:
            self.another = Submission(other_forks(), self.work, self.chapter, self.limits, end).__enter__()
            self.another.load(survey=False)
        self.another.peer.channel.deadline = end
        return self.another

    def limit_time(self) -> None:
        self.peer.channel.deadline = min(self.end, time.monotonic() + self.limits.seconds)

    def load(self, survey: bool = True) -> None:
        """Send the file and let it run. Raises ChannelError if it does not come to an end.

        survey: whether to find out first what the file says without being run
        """
        self.limit_time()
        out = Out()
        files = {name: out.add(data) for name, data in self.work.files.items()}
        shown = self.work.shown or self.work.main
        request = {"op": "read", "files": files, "main": self.work.main, "shown": shown, "survey": survey}
        found = self.peer.ask(request, out)
        if survey:
            self.take_survey(found)
        self.problem = str(self.peer.ask({"op": "load"}, Out())["problem"] or "")

    def take_survey(self, found: dict) -> None:
        """Note which functions are still stubs, and what a teacher should look at."""
        given = known_functions(self.chapter.stub_text)[0]
        self.untouched = [name for name, digest in found["digests"].items() if given.get(name) == digest]
        self.report = Findings(found["missing"], found["flags"], 0.0, found["outlines"])
        self.report.likeness = self.likeness(found["outlines"])

    def likeness(self, mine: Mapping[str, list[str]]) -> float:
        """How much the answers are like the course's solutions, from 0 to 1."""
        path = Path(str(getattr(self.chapter.solutions, "__file__", "")))
        theirs = known_functions(path.read_text(encoding="utf-8"))[1] if path.is_file() else {}
        names = [e.name for e in self.chapter.exercises if e.name in mine and e.name not in self.untouched]
        pairs = [(sum(map(len, theirs[name])), likeness(mine[name], theirs[name])) for name in names if name in theirs]
        weight = sum(length for length, _ in pairs)  # one-line answers agree by nature, and so count little
        return sum(length * alike for length, alike in pairs) / weight if weight else 0.0

    def check(self, number: int, seed: int) -> tuple[str, bool]:
        """("" or what is wrong with an exercise, whether its public tests pass). Raises ChannelError."""
        exercise = self.chapter.exercises[number - 1]
        if exercise.name in self.untouched:
            return "not solved yet", False
        self.limit_time()
        reset_torch()
        self.peer.forget()
        earlier = [each.name for each in self.chapter.exercises[: number - 1]]
        lent = {name: function for name in earlier if (function := getattr(self.chapter.solutions, name, None))}
        out = Out()
        self.peer.ask({"op": "exercise", "lent": self.peer.encode(lent, out)}, out)
        answers, public = Answers(self), [False]
        try:
            if not callable(getattr(answers, exercise.name, None)):
                return f"the file has no function named {exercise.name}", False
            with alarm(self.peer.channel.deadline):
                run_checks(self.chapter, number, answers, seed, public)
        except ChannelError:
            raise
        except BaseException as problem:  # also SystemExit and KeyboardInterrupt, which a submission may raise
            return explain(problem), public[0]
        return "", True


@lru_cache
def known_functions(text: str) -> tuple[dict[str, int], dict[str, list[str]]]:
    """Digests and outlines of the course's own functions."""
    found = survey(Path("known.py"), text.encode())
    return found["digests"], found["outlines"]


@contextmanager
def alarm(end: float | None) -> Iterator[None]:
    """End what the grader itself computes, too, when time is up."""

    def late(number: int, frame: FrameType | None) -> NoReturn:
        raise ChannelError("late")

    if end is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, max(end - time.monotonic(), 0.01) + 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def explain(problem: BaseException) -> str:
    """What went wrong in a submission, in one line."""
    places = getattr(problem, "submission_places", None)
    if isinstance(problem, Raised):
        if isinstance(problem, NotImplementedError) and problem.text.startswith("exercise"):
            return "not solved yet"
        places = problem.places
    elif isinstance(problem, AssertionError):
        return one_line(problem)
    where = f"your code stopped in {places[-1]}" if places else "the check of your result stopped"
    return f"{where} with {type(problem).__name__}: {one_line(problem)}".removesuffix(": ")


def failure(problem: ChannelError, seconds: float) -> str:
    """Why there is no answer, in words."""
    if problem.kind == "late":
        return f"it took longer than {seconds:g} s and was stopped; is there a loop that never ends?"
    if problem.kind == "garbled":
        return f"the process that ran it sent something that is no result ({one_line(problem)})"
    return "the Python process that ran it stopped without an answer: did the code exit, crash Python, or use too much memory?"


def grade_work(
    forks: Forks | Spawns,
    chapter: Chapter,
    work: Work,
    seed: int,
    numbers: Sequence[int],
    limits: Limits,
    report: Findings,
) -> Iterator[Result]:
    """Check these exercises of a submission, yielding each result as it is known, and fill in the report."""
    if tests := getattr(chapter.tests, "__file__", ""):
        prepare(Path(tests).parent)
    left, end, cannot_load = list(numbers), time.monotonic() + limits.total, ""
    while left:
        with Submission(forks, work, chapter, limits, end) as submission:
            try:
                submission.load()
            except ChannelError as problem:
                cannot_load = f"the file cannot be loaded: {failure(problem, limits.seconds)}"
            report.__dict__.update({k: v for k, v in submission.report.__dict__.items() if v})
            while left:
                number, stopped = left.pop(0), False
                exercise = chapter.exercises[number - 1]
                message, public = cannot_load, False
                if time.monotonic() >= end:
                    message = f"the time for the file as a whole, {limits.total:g} s, was used up before"
                elif not cannot_load:
                    try:
                        message, public = submission.check(number, seed)
                    except ChannelError as problem:
                        message, stopped = failure(problem, limits.seconds), True
                    message = with_loading(message, submission.problem)
                points = exercise.points if not message else exercise.points * limits.partial if public else 0
                yield Result(number, exercise.name, points, exercise.points, message, public)
                if stopped:
                    break


def with_loading(message: str, problem: str) -> str:
    """A message, with what went wrong when the file was loaded where that may be the cause."""
    if problem and "the file has no function named" in message:
        return f"the file cannot be loaded: {problem}"
    return f"{message}; when the file was loaded, {problem}" if problem and "NameError" in message else message


def canary(chapter: Chapter, seed: int) -> str:
    """Whether the checks still tell right from wrong, after a submission was graded. "" or what is wrong.

    The first exercise's solution must pass, and a function that returns nothing must fail.
    """
    name = chapter.exercises[0].name
    for function, passes in ((getattr(chapter.solutions, name, None), True), (lambda *_, **__: None, False)):
        answers = ModuleType("canary")
        answers.__dict__.update(vars(chapter.solutions) | {name: function})
        try:
            run_checks(chapter, 1, answers, seed, [False])
            passed = True
        except Exception:
            passed = False
        if function and passed != passes:
            return "the checks no longer tell a right answer from a wrong one"
    return ""


# ------------------------------------------------------------------------------------------------ the grader's process


def answer(connection: socket.socket, control: socket.socket | None) -> None:
    """Judge what is asked for until the connection is closed.

    A request: {"folder", "main", "shown", "files", "seed", "only", "limits"}; the answers: one with the exercises (or
    "broken"), one for each result, and one with "report".

    control  where children are asked for; None where there is no fork
    """
    forks = Forks(control) if control else Spawns(COURSE)
    channel, chapters = Channel(connection), dict[str, Chapter]()
    torch.set_num_threads(1)
    with suppress(ChannelError):
        while True:
            request, buffers = channel.receive()
            folder = request["folder"]
            try:
                if folder not in chapters:
                    chapters[folder] = load_chapter(Path(folder))
                    prepare(Path(folder))
                    gc.freeze()  # what stays need not be searched by the garbage collector
            except Exception as problem:
                channel.send({"broken": f"{type(problem).__name__}: {problem}"})
                continue
            chapter = chapters[folder]
            channel.send({"exercises": [(e.name, e.points) for e in chapter.exercises], "hidden": chapter.hidden})
            if request["only"] and max(request["only"]) > len(chapter.exercises):
                continue  # the grader says so
            work = Work({n: bytes(buffers[k]) for n, k in request["files"].items()}, request["main"], request["shown"])
            numbers, report = request["only"] or range(1, len(chapter.exercises) + 1), Findings()
            start = time.process_time()
            try:
                for result in grade_work(
                    forks, chapter, work, request["seed"], numbers, Limits(**request["limits"]), report
                ):
                    channel.send({"result": asdict(result)})
                failed = canary(chapter, request["seed"]) if request["canary"] else ""
            except ChannelError as problem:
                failed = f"the process that runs submissions failed ({one_line(problem)})"
            channel.send({"report": asdict(report), "failed": failed, "cpu": time.process_time() - start})
