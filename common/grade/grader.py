"""Grades a chapter's exercises: each submission runs in a process of its own, which holds neither solutions nor checks."""

import importlib.metadata
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from common.errors import UserError, printable
from common.grade.chapter import COURSE, exercises_of
from common.grade.marking import formats
from common.grade.marking.messages import Language, padded, translator, width
from common.grade.marking.results import Findings, Limits, Outcome, Result, Work
from common.grade.sandbox.protocol.wire import Channel, ChannelError
from common.grade.sandbox.warm import WarmProcess
from common.grade.stubs import authors
from common.io.files import write_json


@contextmanager
def open_judge() -> Iterator[Channel]:
    """The connection to a process that judges (marking/judge.py)."""
    if not hasattr(os, "fork"):
        from common.grade.marking.judge import answer

        ours, theirs = socket.socketpair()
        threading.Thread(target=answer, args=(theirs, None), daemon=True).start()
        yield Channel(ours)
        ours.close()
        return
    with WarmProcess(COURSE) as warm:
        try:
            yield warm.judge()[0]
        except ChannelError as problem:
            if problem.kind == "garbled":
                raise
            raise UserError(f"the checks cannot be run ({warm.why_ended(problem.kind)})") from None


def ask(
    judge: Channel,
    folder: Path,
    work: Work,
    seed: int,
    only: Sequence[int] = (),
    limits: Limits | None = None,
    canary: bool = False,
) -> Iterator[Result | Outcome]:
    """Let a judge grade a submission: the results of its exercises, as they are known, and what else there is to say.

    folder  the chapter's exercises/
    canary  Check afterwards that the checks still tell right from wrong.
    """
    limits = limits or Limits()
    files = {name: number for number, name in enumerate(work.files)}
    request = {"folder": str(folder), "main": work.main, "shown": work.shown, "files": files, "seed": seed}
    request |= {"only": sorted(set(only)), "limits": asdict(limits), "canary": canary}
    judge.deadline = None
    judge.send(request, list(work.files.values()))
    listing, _ = judge.receive()
    if "broken" in listing:
        raise UserError(f"the checks in {folder} cannot be run ({listing['broken']})")
    if only and max(only) > (last := len(listing["exercises"])):
        raise UserError(f"there is no exercise {max(only)}; after --only give numbers from 1 to {last}")
    while "report" not in (message := judge.receive()[0]):
        found = message["result"]
        yield Result(**found | {"message": printable(found["message"])})
    yield Outcome(Findings(**message["report"]), message["failed"], message["cpu"])


def grade(
    folder: Path, submission: Path, seed: int = 0, seconds: float = 60.0, only: Sequence[int] = ()
) -> Iterator[Result]:
    """Check every exercise, or only those of these numbers, yielding each result as it is known."""
    work = Work({submission.name: submission.read_bytes()}, submission.name, str(submission))
    with open_judge() as judge:
        for each in ask(judge, folder, work, seed, only, Limits(seconds)):
            if isinstance(each, Result):
                yield each


def submission_of(given: Path | None, folder: Path) -> Path:
    """The file with the answers."""
    path = given or folder / "exercises.py"
    if not path.is_file():
        found = f"{path} is a folder" if path.is_dir() else f"there is no file {path}"
        raise UserError(f"{found}; name the Python file or the notebook with the answers after --submission")
    return path


def print_grades(
    chapter: str,
    submission: Path | None,
    seed: int,
    limits: Limits,
    json_file: Path | None = None,
    only: Sequence[int] = (),
    style: str = "csv",
    out: Path | None = None,
    lang: Language = "en",
) -> float:
    """Grade a submission, by default the chapter's exercises.py;
    print each result, and write all to json_file if given. Returns the points.

    style, out  "gradescope" or "github", and the file for the result in that format
    lang        language of what is printed and of that file; json_file has the messages in English, too
    """
    folder = exercises_of(chapter)
    path = submission_of(submission, folder)
    for file, flag in ((json_file, "--json"), (out, "--out")):
        if file and file.resolve() == path.resolve():
            raise UserError(f"{flag} would overwrite the submission; choose another name for the result")

    tiers, say = authors(folder).get("TIERS", {}), translator(lang, folder)
    print(f"{path}, {say(f'seed {seed}')}")
    results, outcome, start = [], None, time.monotonic()
    path = path.resolve()
    work = Work({path.name: path.read_bytes()}, path.name, str(path))
    with open_judge() as judge:
        for each in ask(judge, folder, work, seed, only, limits):
            if isinstance(each, Outcome):
                outcome = each
                continue
            tier = f"{say(f'tier {tiers[each.name]}')}  " if each.name in tiers else ""
            verdict = say(f"failed: {each.message}" if each.message else "passed")
            print(f"{each.number:2} {each.name:24} {tier}{each.points:g}/{each.possible}  {verdict}", flush=True)
            results.append(each)
    points, possible = sum(r.points for r in results), sum(r.possible for r in results)
    column = 28 + (width(say("tier 1")) + 2 if tiers else 0)
    print(f"{padded(say('total'), column)}{points:g}/{possible}")
    if outcome and outcome.failed:
        raise UserError(f"the results do not count: {outcome.failed}")
    if not (folder / "checks.py").is_file():
        print(say("These are the public tests alone; your teacher's grader has hidden checks as well."))
    rows = [asdict(r) | {"tier": tiers.get(r.name), "passed": not r.message} for r in results]
    spoken = [row | {"message": say(row["message"])} for row in rows]
    if lang != "en":
        rows = [row | {f"message_{lang}": other["message"]} for row, other in zip(rows, spoken, strict=True)]
    if json_file:
        summary = {"chapter": folder.parent.name, "submission": str(path), "sha256": work.sha256, "seed": seed}
        summary |= {"version": version(), "missing_protection": outcome.report.missing if outcome else []}
        write_json(json_file, summary | {"points": points, "possible": possible, "exercises": rows})
    if out and style == "gradescope":
        seconds = time.monotonic() - start
        report = formats.gradescope(spoken, folder.parent.name[:2], say(f"seed {seed}"), seconds)
        for test in report["tests"]:
            test["output"] = say(test["output"])  # "passed"
        write_json(out, report)
    elif out and style == "github":
        write_json(out, formats.github(spoken, folder.parent.name[:2]))
    return points


def version() -> str:
    """The course's version: its git commit, or the number of its release."""
    try:
        call = ["git", "-C", str(COURSE), "rev-parse", "--short", "HEAD"]
        return subprocess.run(call, capture_output=True, encoding="utf-8", check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return importlib.metadata.version("diffusion-course")
