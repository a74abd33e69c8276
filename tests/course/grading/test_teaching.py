"""docs/teaching.md and the written questions: commands are understood, tables fit the course, answers are held out."""

import importlib
import re
import shlex
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import tyro

from common.cli import check_numbers
from common.grade.marking.gradebook import Policy
from common.grade.stubs import authors, exercise_names
from helpers.programs import ROOT

PAGE = (ROOT / "docs/teaching.md").read_text(encoding="utf-8")
EXERCISES = {folder.parent.name[1]: folder for folder in sorted(ROOT.glob("0*/exercises"))}
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table after a heading, without its head."""
    lines = PAGE[PAGE.index(f"\n## {heading}\n") :].splitlines()
    first = next(k for k, line in enumerate(lines) if line.startswith("|"))
    table = lines[first + 2 :]
    table = table[: next((k for k, line in enumerate(table) if not line.startswith("|")), len(table))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def listed(text: str) -> list[int]:
    """ "1 to 3, 8" -> [1, 2, 3, 8]"""
    parts = [part.split(" to ") for part in text.split(", ")]
    return [number for part in parts for number in range(int(part[0]), int(part[-1]) + 1)]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_understood(command):
    words = shlex.split(command)
    if words[0] == "npm":
        from common.teach.deck import MATHJAX, REVEAL

        assert words == ["npm", "install", REVEAL, MATHJAX]  # what the pages load without a network
        return
    assert words[:2] == ["python", "-m"]
    module = words[2] if words[2] != "common.grade" else "common.grade.program"
    args = tyro.cli(importlib.import_module(module).Args, args=words[3:])
    check_numbers(args)
    if module == "common.grade.program" and args.hand_ins:
        assert args.out and not (args.json or args.submission)
        assert args.due is None or datetime.fromisoformat(args.due)


def test_commands_of_every_program_for_teachers_are_shown():
    text = " ".join(COMMANDS)
    for name in ("common.grade", "common.handout", "common.teach.slides", "common.teach.leaderboard"):
        assert f"python -m {name} " in text


def test_the_table_of_chapters_is_the_readmes():
    table = rows("What there is")
    assert len(table) == len(EXERCISES) == 6
    for (number, folder), row in zip(EXERCISES.items(), table, strict=True):
        assert row[0] == f"[{number}](../{folder.parent.name})"
        labels = list(authors(folder)["DIFFICULTY"].values())
        assert row[3:6] == [str(labels.count(label)) for label in ("easy", "middle", "hard")]
        readme = (folder / "README.md").read_text(encoding="utf-8")
        points = [int(found) for found in re.findall(r"\| (?:easy|middle|hard) \| (\d+) \|", readme)]
        assert sum(points) == int(row[6]) and len(points) == len(labels)
        chapter = (folder.parent / "README.md").read_text(encoding="utf-8")
        for heading, cell in (("Lesson", row[1]), ("Exercises", row[2])):
            assert re.search(rf"^\| {heading} \| (?:about )?{cell} hours", chapter, re.MULTILINE), (number, heading)


def test_the_schedule_has_every_exercise_and_section_once():
    found: dict[str, list[int]] = {number: [] for number in EXERCISES}
    sections: dict[str, list[int]] = {number: [] for number in EXERCISES}
    for _, lesson, exercises in rows("Schedules"):
        if exercises:
            number, _, text = exercises.partition(": ")
            found[number] += listed(text)
            chapter, first, last = re.match(r"chapter (\d), sections (\d+) to (\d+)", lesson).groups()
            assert chapter == number
            sections[number] += range(int(first), int(last) + 1)
    for number, folder in EXERCISES.items():
        names = exercise_names((folder / "solutions.py").read_text(encoding="utf-8"))
        assert sorted(found[number]) == list(range(1, len(names) + 1)), f"chapter {number}"
        lesson = (folder.parent / "lesson.py").read_text(encoding="utf-8")
        assert sections[number] == [int(each) for each in re.findall(r"^# ## (\d+) ·", lesson, re.MULTILINE)]


def test_the_example_of_the_late_policy():
    due = datetime(2026, 12, 1, 23, 59)
    policy = Policy(due=due, late_per_day=0.1, late_limit=5)
    assert policy.penalty(due + timedelta(hours=25)) == 0.2 and policy.penalty(due + timedelta(days=5.1)) == 1
    assert "25 hours late loses 20 %" in PAGE and "--late-per-day 0.1 --late-limit 5" in PAGE


def test_the_table_of_the_leaderboard_names_every_goal():
    from common.teach.ranking import goals_of

    for (number, folder), row in zip(EXERCISES.items(), rows("The leaderboard"), strict=True):
        assert row[0] == number
        assert re.findall(r"`(\w+)`", row[1]) == [goal.name for goal in goals_of(folder)]


def test_the_points_of_the_report_and_the_shares():
    table = rows("Rubric")
    assert sum(int(row[1].removesuffix(" %")) for row in table) == 100
    report = PAGE[PAGE.index("| item of the report") :]
    assert sum(int(each) for each in re.findall(r"\| (\d+) \|$", report, re.MULTILINE)) == 20


# --------------------------------------------------------------------------------------------------- written questions


def questions(path: Path) -> dict[str, tuple[int, str]]:
    """{title: (points, text)} of a page of questions or answers in either language."""
    parts = re.split(r"^## ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    found = {}
    for part in parts:
        title, _, text = part.partition("\n")
        name, points = re.fullmatch(r"(\d · .+?) ?[(（](\d) (?:points\)|分）)", title).groups()
        found[name] = (int(points), text.strip())
    return found


@pytest.mark.parametrize("suffix", [".md", ".zh.md"])
@pytest.mark.parametrize("number", EXERCISES)
def test_every_written_question_has_an_answer_whose_items_make_its_points(number, suffix):
    asked, answered = (questions(EXERCISES[number] / f"{name}{suffix}") for name in ("written", "answers"))
    assert list(asked) == list(answered) and 6 <= len(asked) <= 8
    assert [name[0] for name in asked] == [str(k) for k in range(1, len(asked) + 1)]
    assert sum(points for points, _ in asked.values()) == 20
    for name, (points, text) in answered.items():
        assert points == asked[name][0]
        assert sum(items(text)) == points, name
    page = (EXERCISES[number] / f"written{suffix}").read_text(encoding="utf-8")
    long = 40 if suffix == ".md" else 20  # characters of a line that could be a sentence
    for _, text in answered.values():  # no sentence of an answer is in the questions
        assert not [line for line in text.splitlines() if len(line) > long and line in page]


def items(text: str) -> list[int]:
    """The points of the items that an answer lists."""
    return [int(points) for points in re.findall(r"^- [(（](\d)(?:\) | 分）)\S", text, re.MULTILINE)]


@pytest.mark.parametrize("name", ["written", "answers"])
@pytest.mark.parametrize("number", EXERCISES)
def test_both_languages_have_the_same_questions(number, name):
    """Equal points and items, question by question, and equal formulas; those of a question in any order."""
    english, chinese = (questions(EXERCISES[number] / f"{name}{suffix}") for suffix in (".md", ".zh.md"))
    assert [title[0] for title in english] == [title[0] for title in chinese]
    for (points, text), (its_points, its_text) in zip(english.values(), chinese.values(), strict=True):
        assert points == its_points and items(text) == items(its_text)
        assert formulas(text) == formulas(its_text)


def formulas(text: str) -> set[str]:
    return {" ".join(found.split()) for found in re.findall(r"\$([^$]+)\$", text)}


def test_answers_are_not_on_the_site():
    spec = importlib.util.spec_from_file_location("site_builder", ROOT / "docs/build_site.py")
    site = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(site)
    names = {page.as_posix() for page in site.pages()}
    contents = str(site.navigation())
    for suffix in (".md", ".zh.md"):
        assert {f"{folder.parent.name}/exercises/written{suffix}" for folder in EXERCISES.values()} <= names
        assert contents.count(f"exercises/written{suffix}") == 6 and f"docs/teaching{suffix}" in contents
    assert not [name for name in names if "answers" in name]


def test_the_arithmetic_of_answers():
    """Numbers that answers state, computed."""
    from math import exp, log, sqrt

    def wilson(k: int, n: int, z: float = 1.96) -> tuple[float, float]:
        middle, half = k / n + z * z / (2 * n), z * sqrt(k / n * (1 - k / n) / n + z * z / (4 * n * n))
        return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)

    text = {number: (folder / "answers.md").read_text(encoding="utf-8") for number, folder in EXERCISES.items()}
    low, high = wilson(47, 50)
    assert f"about {low:.0%} to {high:.0%} for 47".replace("%", " %") in text["2"]
    low, high = wilson(48, 50)
    assert f"about {low:.0%} to {high:.0%} for 48".replace("%", " %") in text["2"]
    assert f"{16 / 13:.2f}" in text["2"] and f"{13**-0.5:.2f}" in text["2"]
    assert f"{512 * 512 * 3:,}" in text["4"] and 512 * 512 * 3 / (64 * 64 * 4) == 48 and 64**2 == 4096
    assert f"{2 * 8 * 1280:,}" in text["5"] and f"{1280 * 1280:,}" in text["5"] and 2 * 8 * 1280 / 1280**2 == 0.0125
    assert f"{log(0.5) / log(0.999):.0f} and {log(0.5) / log(0.9999):,.0f}" in text["5"]
    assert round(0.9999**600, 2) == 0.94 and f"{exp(5):.0f}" in text["6"] and f"{3 ** (1 / 23):.3f}" in text["6"]
