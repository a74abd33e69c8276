"""Makes the course as learners get it: without solutions, hidden checks, mistakes and history."""

import json
import shutil
import subprocess
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from common.errors import UserError
from common.grade.chapter import COURSE
from common.grade.checks import load_chapter
from common.grade.grader import version
from common.grade.marking.platform_files import CLASSROOM, RUN, SETUP, STEP
from common.grade.stubs import answered, exercise_names, strip
from common.io.files import write_atomically, write_json

KEPT_BACK = {"solutions", "checks", "right_ways", "mistakes", "answers"}  # of an exercises folder, in any language
WITHOUT = {".git", ".github", ".ci", "tests", "bench", "runs", "build", ".venv"}  # of the course's main folder


@dataclass(frozen=True)
class Autograder:
    """What Gradescope's autograder knows beside the chapter, as autograder.json in its zip file."""

    secret: str = ""  # from which each student's seed follows
    seed: int = 0  # of everybody, where there is no secret
    late_per_day: float = 0.0  # share of the points lost for each day that has begun
    late_limit: float = 365.0  # days after which no points are given
    partial: float = 0.0  # share of the points for passing an exercise's public tests alone
    leaderboard: bool = False  # whether the open-ended exercises go to the assignment's leaderboard


def hand_out(
    chapters: Sequence[str], out: Path, autograder: Path | None, settings: Autograder | None = None
) -> list[Path]:
    """Write the handout to a new folder. Returns the folders of the chapters in it.

    autograder  zip file to write for Gradescope, with solutions and hidden checks; only with a single chapter
    settings    how Gradescope grades
    """
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; name a new folder after --out")
    if out.resolve().is_relative_to(COURSE):
        raise UserError(f"{out} lies within the course; name a folder elsewhere after --out")
    folders = [folder for folder in sorted(COURSE.glob("[0-9][0-9]_*")) if folder.name[:2] in chapters]
    if autograder and len(folders) != 1:
        raise UserError("Gradescope has one autograder for each assignment; give --gradescope with one chapter")
    for path in course_files():
        place = path.relative_to(COURSE)
        other_chapter = place.parts[0][:2].isdigit() and place.parts[0] not in {folder.name for folder in folders}
        if not other_chapter and not is_kept_back(place):
            (out / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, out / place)
    steps = []
    for folder in folders:
        steps += write_exercises(folder / "exercises", out / folder.name / "exercises")
    write_classroom(steps, out)
    if autograder:
        write_autograder(folders[0].name[:2], autograder, settings or Autograder())
    return [out / folder.name for folder in folders]


def course_files() -> list[Path]:
    """The files of the course that git knows, or all where there is no git."""
    try:
        call = ["git", "-C", str(COURSE), "ls-files", "-z"]
        names = subprocess.run(call, capture_output=True, check=True).stdout.decode().split("\0")
        found = [COURSE / name for name in names if name]
    except (OSError, subprocess.CalledProcessError):
        found = sorted(COURSE.rglob("*"))
    return [path for path in found if path.is_file() and not path.is_symlink()]


def is_kept_back(place: Path) -> bool:
    """Whether a file of the course is not for learners."""
    made = place.parts[0] in WITHOUT or "__pycache__" in place.parts
    return made or (place.parent.name == "exercises" and place.name.split(".")[0] in KEPT_BACK)


def write_exercises(source: Path, target: Path) -> list[dict]:
    """Write the blank exercises.py and what the grader needs to know without solutions and checks.

    Returns the steps of GitHub Classroom's workflow.
    """
    chapter, number = load_chapter(source), source.parent.name[:2]
    solutions = (source / "solutions.py").read_text(encoding="utf-8")
    stub = strip(solutions)
    write_atomically(target / "exercises.py", lambda file: file.write(stub.encode()))
    for other in target.glob("exercises.*.py"):  # in other languages
        if kept := answered(other.read_text(encoding="utf-8"), stub, exercise_names(solutions)):
            raise UserError(f"{source / other.name} holds answers, to {', '.join(kept)}; restore the blank file first")
    listed = [{"name": e.name, "points": e.points} for e in chapter.exercises]
    write_json(target / "exercises.json", {"exercises": listed, "stub": stub})
    return [
        {"id": f"c{number}-{k}", "name": f"{number}.{k} {e.name}", "chapter": number, "number": k, "points": e.points}
        for k, e in enumerate(chapter.exercises, 1)
    ]


def write_classroom(steps: list[dict], out: Path) -> None:
    text = CLASSROOM.format(
        steps="".join(STEP.format(**step) for step in steps),
        results="".join(
            f'          {step["id"].upper()}_RESULTS: "${{{{steps.{step["id"]}.outputs.result}}}}"\n' for step in steps
        ),
        runners=",".join(step["id"] for step in steps),
    )
    path = out / ".github/workflows/classroom.yml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(text.encode()))


def write_autograder(chapter: str, path: Path, settings: Autograder) -> None:
    """The zip file that Gradescope asks for: setup.sh, run_autograder, settings, and the course with its hidden checks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {"chapter": chapter, "version": version()} | asdict(settings)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in (("setup.sh", SETUP), ("run_autograder", RUN)):
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o755 << 16
            archive.writestr(info, text)
        archive.writestr("autograder.json", json.dumps(known, indent=1))
        for file in course_files():
            place = file.relative_to(COURSE)
            own = place.parts[0] in ("common", "constraints.txt")
            if own or (place.parts[0][:2] == chapter and "exercises" in place.parts):
                archive.write(file, f"course/{place}")


def names_and_stub(folder: Path) -> tuple[list[dict], str]:
    """The exercises and the blank exercises.py of a handout's exercises folder."""
    known = json.loads((folder / "exercises.json").read_text(encoding="utf-8"))
    return known["exercises"], known["stub"]
