"""The process in which `common.grade` runs a submission, so that nothing it does can hurt the grader.

It reads one line of JSON from stdin (token, folder, submission, seed, numbers) and answers with lines "TOKEN JSON":
the list of exercises, then whether the submission could be loaded, then a verdict for each exercise. The answers leave
through a private copy of stdout; the submission's own stdin, stdout and stderr lead nowhere.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType


def private_channel(token: str) -> Callable[[object], None]:
    """A function that sends one answer; from here on printing goes nowhere."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)

    def send(answer: object) -> None:
        channel.write(f"\n{token} {json.dumps(answer)}\n")  # on a line of its own, whatever else was written there
        channel.flush()

    return send


def work(send: Callable[[object], None], folder: Path, submission: Path, seed: int, numbers: list[int]) -> None:
    import torch

    from common.grade.checks import explain, load, load_chapter, verdict

    torch.set_num_threads(1)
    try:
        chapter = load_chapter(folder)
    except Exception as problem:
        return send({"broken": f"{type(problem).__name__}: {problem}"})
    send({"exercises": [(exercise.name, exercise.points) for exercise in chapter.exercises]})

    def fresh() -> ModuleType:
        return load(submission, "submission")

    try:
        fresh()
    except BaseException as problem:
        return send({"problem": explain(problem, submission)})
    send({"problem": ""})
    for number in numbers or range(1, len(chapter.exercises) + 1):
        if number > len(chapter.exercises):  # the grader says so
            break
        send({"message": verdict(chapter, number, fresh(), seed)})
    return None


def main() -> None:
    request = json.loads(sys.stdin.readline())
    send = private_channel(request.pop("token"))
    work(send, Path(request["folder"]), Path(request["submission"]), request["seed"], request["numbers"])


if __name__ == "__main__":
    main()
