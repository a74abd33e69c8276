"""Grades a chapter's exercises: each runs in a process of its own, so that no submission can harm the grader."""

import json
import os
import queue
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, cast

from common.errors import UserError
from common.grade.chapter import COURSE, exercises_of
from common.grade.stubs import authors
from common.io.files import write_json

START = 300.0  # seconds that the worker may take to import torch, on the slowest disk


@dataclass(frozen=True)
class Result:
    number: int
    name: str
    points: int
    possible: int
    message: str  # what went wrong; empty if nothing did


class Worker:
    """A process that checks exercises one after the other: those of these numbers, or all if there are none.
    Killed on leaving the `with` block.
    """

    def __init__(self, folder: Path, submission: Path, seed: int, numbers: Sequence[int]) -> None:
        self.token = secrets.token_hex(16)
        self.answers: queue.Queue[dict] = queue.Queue()
        places = {"folder": str(folder), "submission": str(submission)}
        self.request = {"token": self.token, "seed": seed, "numbers": list(numbers)} | places

    def __enter__(self) -> "Worker":
        # for files that the submission writes to the current folder
        self.scratch = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.errors = tempfile.TemporaryFile()  # stderr of the worker itself; what the submission prints is discarded
        self.process = subprocess.Popen(
            [sys.executable, "-m", "common.grade.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            encoding="utf-8",
            errors="replace",
            cwd=self.scratch.name,
            env=os.environ | {"PYTHONPATH": str(COURSE)},
            start_new_session=True,
        )
        with cast(IO[str], self.process.stdin) as pipe:
            pipe.write(json.dumps(self.request) + "\n")
        threading.Thread(target=self.listen, daemon=True).start()
        return self

    def listen(self) -> None:
        """Queue the worker's answers; lines without the token are not from the worker but from the submission."""
        for line in cast(IO[str], self.process.stdout):
            if line.startswith(self.token):
                self.answers.put(json.loads(line.removeprefix(self.token)))
        self.answers.put({"ended": True})

    def answer(self, seconds: float) -> dict:
        try:
            return self.answers.get(timeout=seconds)
        except queue.Empty:
            return {"late": True}

    def why_silent(self, reply: dict) -> str:
        """Why a worker did not list the exercises."""
        if "broken" in reply:
            return reply["broken"]
        self.errors.seek(0)
        last = self.errors.read().decode("utf-8", "replace").strip().splitlines()[-1:]
        silent = f"no answer within {START:g} s" if "late" in reply else "the process ended without an answer"
        return "; ".join([silent, *last])

    def __exit__(self, *_: object) -> None:
        if hasattr(os, "killpg"):  # its children too, where the system knows groups of processes
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        self.errors.close()
        self.scratch.cleanup()


def grade(
    folder: Path, submission: Path, seed: int = 0, seconds: float = 60.0, only: Sequence[int] = ()
) -> Iterator[Result]:
    """Check every exercise, or only those of these numbers, yielding each result as it is known.

    One process checks them all, because importing torch takes seconds; where an exercise hangs or ends the process,
    a new one goes on with the next exercise.
    """
    left, listed = sorted(set(only)), False  # no numbers before the list is known: all
    while left or not listed:
        with Worker(folder, submission, seed, left) as worker:
            listing = worker.answer(START)
            if "exercises" not in listing:
                raise UserError(f"the checks in {folder} cannot be run ({worker.why_silent(listing)})")
            exercises, listed = listing["exercises"], True
            left = left or list(range(1, len(exercises) + 1))
            if left[-1] > len(exercises):
                raise UserError(
                    f"there is no exercise {left[-1]}; after --only give numbers from 1 to {len(exercises)}"
                )

            load_problem = failure(worker.answer(seconds), "problem", seconds)
            while left:
                number = left.pop(0)
                message, reply = f"the file cannot be loaded: {load_problem}", {}
                if not load_problem:
                    reply = worker.answer(seconds)
                    message = failure(reply, "message", seconds)
                name, points = exercises[number - 1]
                yield Result(number, name, 0 if message else points, points, message)
                if "late" in reply or "ended" in reply:
                    break


def failure(reply: dict, key: str, seconds: float) -> str:
    """The worker's answer under this key, or why there is none. "" if all is well."""
    if "late" in reply:
        return f"it took longer than {seconds:g} s and was stopped; is there a loop that never ends?"
    if "ended" in reply:
        return "the Python process that ran it stopped without an answer: did the code exit, crash Python, or use too much memory?"
    return reply[key]


def submission_of(given: Path | None, folder: Path) -> Path:
    """The file with the answers."""
    path = given or folder / "exercises.py"
    if not path.is_file():
        found = f"{path} is a folder" if path.is_dir() else f"there is no file {path}"
        raise UserError(f"{found}; name the Python file or the notebook with the answers after --submission")
    return path


def print_grades(
    chapter: str, submission: Path | None, seed: int, seconds: float, json_file: Path | None, only: Sequence[int] = ()
) -> None:
    """Grade a submission, by default the chapter's exercises.py;
    print each result, and write all to json_file if given.
    """
    folder = exercises_of(chapter)
    path = submission_of(submission, folder)
    if json_file and json_file.resolve() == path.resolve():
        raise UserError("--json would overwrite the submission; choose another name for the result")

    tiers = authors(folder).get("TIERS", {})
    print(f"{path}, seed {seed}")
    results = []
    for result in grade(folder, path.resolve(), seed, seconds, only):
        tier = f"tier {tiers[result.name]}  " if result.name in tiers else ""
        outcome = f"failed: {result.message}" if result.message else "passed"
        print(f"{result.number:2} {result.name:24} {tier}{result.points}/{result.possible}  {outcome}", flush=True)
        results.append(result)
    points, possible = sum(r.points for r in results), sum(r.possible for r in results)
    print(f"{'total':{35 if tiers else 27}} {points}/{possible}")
    if json_file:
        rows = [asdict(r) | {"tier": tiers.get(r.name), "passed": not r.message} for r in results]
        summary = {"chapter": folder.parent.name, "submission": str(path), "seed": seed}
        write_json(json_file, summary | {"points": points, "possible": possible, "exercises": rows})
