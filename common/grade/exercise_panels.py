"""Draws the picture of `python -m common.grade.show_exercises`: a panel for each exercise."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import matplotlib
import torch
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter

from common.errors import UserError
from common.grade.checks import explain, lend, load, load_chapter
from common.grade.grader import exercises_of, submission_of
from common.grade.marking.messages import Language, translator
from common.viz import label_language, save_figure

SECONDS = 10.0  # time limit of each exercise, whose panel takes a fraction of one


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """A time limit for the code in this context, in which os._exit only ends that code.
    (Windows has no such timer.)
    """

    def stop(*_: object) -> NoReturn:
        raise TimeoutError(f"your code did not end within {seconds:g} seconds")

    def end(status: int = 0) -> NoReturn:
        raise SystemExit(status)

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


def draw_panels(chapter_name: str, submission: Path | None, out: Path | None, lang: Language = "en") -> None:
    """Draw the panels, print what is wrong with an answer, and print where the picture is.

    lang  of the words in the picture and of what is printed
    """
    folder = exercises_of(chapter_name)
    say = translator(lang, folder)
    label = translator(lang, folder, few=0)  # a panel's words are the course's own, and most are short
    path = submission_of(submission, folder)
    if not (folder / "solutions.py").is_file():
        raise UserError(
            f"the panels need the solutions, which this copy of the course lacks; {folder / 'right.png'} shows right answers"
        )
    matplotlib.use("agg")
    import matplotlib.pyplot as plt  # after the choice of a backend without a screen

    label_language(lang)

    torch.set_num_threads(1)  # the panels' pictures are tiny
    chapter, panels = load_chapter(folder), load(folder / "panels.py", "panels")
    rows = (len(chapter.exercises) + 3) // 4
    figure, axes = plt.subplots(rows, 4, figsize=(15, 3.25 * rows), layout="constrained")
    for axis in axes.flat[len(chapter.exercises) :]:
        axis.axis("off")
    for number, (exercise, axis) in enumerate(zip(chapter.exercises, axes.flat, strict=False), 1):
        problem_text = ""
        torch.manual_seed(0)
        try:
            with at_most(SECONDS):
                answers = load(path, "submission")
                lend(chapter, answers, exercise.name)
                getattr(panels, exercise.name)(answers, chapter.solutions, axis)
        except (Exception, SystemExit) as problem:  # exit() in an answer must not end the drawing
            problem_text = say(explain(problem, path))
            print(f"{number}. {exercise.name}: {problem_text}", flush=True)
            axis.clear()
            axis.axis("off")
        for text in axis.findobj(Text):  # title, names of the axes, legend, and words in the panel
            text.set_text(label(text.get_text()))
        for side in (axis.xaxis, axis.yaxis):
            if isinstance(ticks := side.get_major_formatter(), FixedFormatter):
                side.set_major_formatter(FixedFormatter([label(each) for each in ticks.seq]))
        title = f"{number}. {exercise.name}\n{problem_text or axis.get_title()}"
        axis.set_title(title, fontsize=9, wrap=True, color="tab:red" if problem_text else "black")
    print(save_figure(figure, out or Path("runs") / folder.parent.name / "exercises.png", dpi=90))
