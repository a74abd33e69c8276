"""Makes the course as learners get it: without solutions, hidden checks, mistakes and history."""

import json
import shutil
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError
from common.grade.chapter import COURSE
from common.grade.checks import load_chapter
from common.grade.stubs import strip
from common.io.files import write_atomically, write_json

KEPT_BACK = {"solutions.py", "checks.py", "right_ways.py", "mistakes.py", "answers.md"}  # of an exercises folder
WITHOUT = {".git", ".github", ".ci", "tests", "bench", "runs", "__pycache__", ".venv", "written"}
SETUP = """#!/usr/bin/env bash
# Gradescope runs this once, when the autograder's container is built.
set -e
apt-get update && apt-get install -y python3 python3-pip python3-venv util-linux
python3 -m venv /autograder/venv
/autograder/venv/bin/pip install --index-url https://download.pytorch.org/whl/cpu torch torchvision
/autograder/venv/bin/pip install -r /autograder/source/course/requirements.txt
chmod -R go-rwx /autograder/source
"""
RUN = """#!/usr/bin/env bash
# Gradescope runs this for each submission. Whatever happens, results.json is written.
AUTOGRADER=${{AUTOGRADER:-/autograder}}
PYTHON=${{PYTHON:-$AUTOGRADER/venv/bin/python}}
mkdir -p "$AUTOGRADER/results"
echo '{{"score": 0, "output": "the autograder ended without a result"}}' > "$AUTOGRADER/results/results.json"
cd "$AUTOGRADER/source/course" || exit 0
file=$(ls "$AUTOGRADER"/submission/*.py "$AUTOGRADER"/submission/*.ipynb 2>/dev/null | head -n 1)
if [ -z "$file" ]; then
  echo '{{"score": 0, "output": "hand in a Python file (.py) or a notebook (.ipynb)"}}' > "$AUTOGRADER/results/results.json"
  exit 0
fi
PYTHONPATH=. "$PYTHON" -m common.grade {chapter} --submission "$file" --format gradescope \\
  --out "$AUTOGRADER/results/results.json" || true
"""
CLASSROOM = """# GitHub Classroom: one test for each exercise, with the public tests.
name: Autograding Tests
on: [push, workflow_dispatch]
permissions:
  checks: write
  actions: read
  contents: read
jobs:
  run-autograding-tests:
    runs-on: ubuntu-latest
    if: github.actor != 'github-classroom[bot]'
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with:
          python-version: "3.11"
      - run: pip install -r requirements.txt
{steps}      - uses: classroom-resources/autograding-grading-reporter@v1
        env:
{results}        with:
          runners: {runners}
"""
STEP = """      - id: {id}
        uses: classroom-resources/autograding-command-grader@v1
        with:
          test-name: "{name}"
          command: python -m common.grade {chapter} --only {number} --fail-under {points}
          timeout: 5
          max-score: {points}
"""


def hand_out(chapters: Sequence[str], out: Path, autograder: Path | None) -> list[Path]:
    """Write the handout to a new folder. Returns the folders of the chapters in it.

    autograder  zip file to write for Gradescope, with solutions and hidden checks; only with a single chapter
    """
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; name a new folder after --out")
    if out.resolve().is_relative_to(COURSE):
        raise UserError(f"{out} lies within the course; name a folder elsewhere after --out")
    folders = [folder for folder in sorted(COURSE.glob("[0-9][0-9]_*")) if folder.name[:2] in chapters]
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
        if len(folders) != 1:
            raise UserError("Gradescope has one autograder for each assignment; give --gradescope with one chapter")
        write_autograder(folders[0].name[:2], autograder)
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
    return bool(WITHOUT & set(place.parts)) or (place.parent.name == "exercises" and place.name in KEPT_BACK)


def write_exercises(source: Path, target: Path) -> list[dict]:
    """Write the blank exercises.py and what the grader needs to know without solutions and checks.

    Returns the steps of GitHub Classroom's workflow.
    """
    chapter, number = load_chapter(source), source.parent.name[:2]
    stub = strip((source / "solutions.py").read_text(encoding="utf-8"))
    write_atomically(target / "exercises.py", lambda file: file.write(stub.encode()))
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


def write_autograder(chapter: str, path: Path) -> None:
    """The zip file that Gradescope asks for: setup.sh, run_autograder, and the course with its hidden checks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in (("setup.sh", SETUP), ("run_autograder", RUN.format(chapter=chapter))):
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o755 << 16
            archive.writestr(info, text)
        for file in course_files():
            place = file.relative_to(COURSE)
            own = place.parts[0] in ("common", "requirements.txt", "constraints.txt", "pyproject.toml")
            if own or (place.parts[0][:2] == chapter and "exercises" in place.parts):
                archive.write(file, f"course/{place}")


def names_and_stub(folder: Path) -> tuple[list[dict], str]:
    """The exercises and the blank exercises.py of a handout's exercises folder."""
    known = json.loads((folder / "exercises.json").read_text(encoding="utf-8"))
    return known["exercises"], known["stub"]
