"""See the answers to a chapter's exercises at work: one picture, with a panel for each. A wrong formula often looks wrong.

  python -m common.grade.show_exercises 01
  python -m common.grade.show_exercises 01 --submission mine.py --out mine.png

Each panel (exercises/panels.py) uses your answer to its own exercise, and the solutions to all others.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tyro

from common.cli import run
from common.grade.grader import exercises_of, submission_of


@dataclass(frozen=True)
class Args:
    chapter: tyro.conf.Positional[str]
    """The chapter's number: 01."""
    submission: Path | None = None
    """The Python file or notebook with your answers; by default the chapter's exercises/exercises.py."""
    out: Path | None = None
    """Where the picture goes; by default runs/<chapter>/exercises.png."""


SECONDS = 10.0  # time limit of each exercise, whose panel takes a fraction of one


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Within this context, code that does not end is stopped, and os._exit ends it alone. (Windows has no such clock.)"""

    def stop(*_):
        raise TimeoutError(f"your code did not end within {seconds:g} seconds")

    def end(code: int = 0):
        raise SystemExit(code)

    timed, exit_at_once = hasattr(signal, "setitimer"), os._exit
    before = signal.signal(signal.SIGALRM, stop) if timed else None
    os._exit = end
    try:
        if timed:
            signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        os._exit = exit_at_once
        if timed:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def main(args: Args) -> None:
    folder = exercises_of(args.chapter)
    submission = submission_of(args.submission, folder)

    import matplotlib
    import torch

    from common.grade.checks import explain, lend, load, load_chapter
    from common.io.files import write_atomically

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    torch.set_num_threads(1)  # the panels' pictures are tiny
    chapter, panels = load_chapter(folder), load(folder / "panels.py", "panels")
    rows = (len(chapter.exercises) + 3) // 4
    figure, axes = plt.subplots(rows, 4, figsize=(15, 3.25 * rows), layout="constrained")
    for axis in axes.flat[len(chapter.exercises) :]:
        axis.axis("off")
    for number, (exercise, axis) in enumerate(zip(chapter.exercises, axes.flat, strict=False), 1):
        says = ""
        torch.manual_seed(0)
        try:
            with at_most(SECONDS):
                answers = load(submission, "submission")
                lend(chapter, answers, exercise.name)
                getattr(panels, exercise.name)(answers, chapter.solutions, axis)
        except (Exception, SystemExit) as problem:  # exit() in an answer must not end the drawing
            says = explain(problem, submission)
            print(f"{number}. {exercise.name}: {says}", flush=True)
            axis.clear()
            axis.axis("off")
        title = f"{number}. {exercise.name}\n{says or axis.get_title()}"
        axis.set_title(title, fontsize=9, wrap=True, color="tab:red" if says else "black")
    out = args.out or Path("runs") / folder.parent.name / "exercises.png"
    write_atomically(out, lambda file: figure.savefig(file, format="png", dpi=90))
    print(out)


if __name__ == "__main__":
    run(main, Args)
