"""The leaderboard: measured values, places, and what has no place."""

import csv
import io
import os

import pytest

import common.teach.leaderboard as program
from common.errors import UserError
from common.grade.chapter import exercises_of
from common.grade.checks import load, load_chapter
from common.teach.goals import Goal
from common.teach.ranking import SOLUTION, Standing, goals_of, leaderboard_of, place, pseudonyms, table

SMALL = Goal("a", "Error", "smaller", 0.1, "10 evaluations.", lambda ex, seed: 0.0)
LARGE = Goal("b", "Margin", "larger", 1.0, "30 steps.", lambda ex, seed: 0.0)


def test_places():
    entries = [
        Standing(SMALL, "ada", [0.2, 0.4]), Standing(SMALL, "bob", [0.05, 0.05]), Standing(SMALL, "cem", [0.050001, 0.050001]),
        Standing(SMALL, "dan", problem="not solved yet"), Standing(SMALL, SOLUTION, [0.01]), Standing(LARGE, "ada", [1.1]), Standing(LARGE, "bob", [1.3]),
    ]  # fmt: skip
    ranked = place(entries)
    assert [(each.goal.name, each.name, each.place) for each in ranked] == [
        ("a", SOLUTION, None), ("a", "bob", 1), ("a", "cem", 1), ("a", "ada", 3), ("a", "dan", None), ("b", "bob", 1), ("b", "ada", 2),
    ]  # fmt: skip
    text = table(ranked, {}, 2)
    assert "| 1 | bob | 0.05 | yes |\n| 1 | cem | 0.05 | yes |\n| 3 | ada | 0.3 | no |" in text and "dan" not in text
    hidden = pseudonyms(ranked, b"secret")
    assert hidden == pseudonyms(ranked, b"secret") != pseudonyms(ranked, b"other") and len(set(hidden.values())) == 4
    assert pseudonyms(ranked, b"") != pseudonyms(ranked, b"")
    text = table(ranked, hidden, 2)
    assert not any(name in text for name in ("ada", "bob", "cem")) and SOLUTION in text and hidden["bob"] in text
    assert leaderboard_of(ranked)[1] == {"name": "a: Error", "value": 0.05, "order": "asc"}
    assert leaderboard_of(ranked)[-1]["order"] == "desc" and len(leaderboard_of(ranked)) == 6


@pytest.mark.parametrize("number", range(1, 7))
def test_solutions_reach_the_goals_and_a_seed_gives_the_same_value(number):
    """Measured in this process; a hand-in is measured in another one, below."""
    folder = exercises_of(f"0{number}")
    solutions = load(folder / "solutions.py", "course_solutions")
    names = [exercise.name for exercise in load_chapter(folder).exercises]
    goals = goals_of(folder)
    assert goals and {goal.name for goal in goals} <= set(names)
    for goal in goals:
        if goal.name == "fill_the_hole":
            continue  # takes seconds; the chapter's own check measures the same
        value = goal.measure(solutions, 1)
        assert goal.reached(value) and goal.measure(solutions, 1) == value


def test_rules_that_are_broken():
    """An answer that breaks a rule has no value."""

    class Copies:
        @staticmethod
        def sample_prior(codes, n, rng):
            return codes.clone()

    with pytest.raises(AssertionError, match="are copies"):
        goals_of(exercises_of("04"))[0].measure(Copies, 0)

    class Greedy:
        @staticmethod
        def fifteen_evaluations(model, x_T, alpha_bar, generator):
            for _ in range(16):
                model(x_T, x_T.new_full((len(x_T),), 9, dtype=int))

    with pytest.raises(AssertionError, match="more than 15 times"):
        goals_of(exercises_of("01"))[0].measure(Greedy, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the warm process is forked")
def test_a_class(tmp_path, capsys):
    """Hand-ins run in processes of their own; one that ends its process, and one that tampers with the count, get no place."""
    folder, head = tmp_path / "hand-ins", "def guidance_scale(noise):\n"
    folder.mkdir()
    (folder / "ada.py").write_text(head + "    return 8.0 if 1.5 < noise <= 4 else 1.5\n")
    (folder / "bob.py").write_text(head + "    return 2.0\n")
    (folder / "cem.py").write_text(head + "    import os\n    os._exit(0)\n")
    (folder / "dan.py").write_text(head + "    return float('nan')\n")
    (folder / "eva.py").write_text("x = 1\n")
    (tmp_path / "roster.csv").write_text("id\n" + "\n".join(["ada", "bob", "cem", "dan", "eva", "fay"]) + "\n")
    program.main(program.Args("02", folder, tmp_path / "roster.csv", tmp_path / "board", rounds=1))
    said = (tmp_path / "board/leaderboard.csv").read_text()
    rows = {row["student_id"]: row for row in csv.DictReader(io.StringIO(said))}
    assert {name: row["place"] for name, row in rows.items()} == {
        "ada": "1", "bob": "2", SOLUTION: "", "cem": "", "dan": "", "eva": "", "fay": "",
    }  # fmt: skip
    assert float(rows["ada"]["value"]) == float(rows[SOLUTION]["value"]) > 1 > float(rows["bob"]["value"])
    assert "stopped without an answer" in rows["cem"]["problem"] and "nan" in rows["dan"]["problem"]
    assert (
        "no function named guidance_scale" in rows["eva"]["problem"] and rows["fay"]["problem"] == "nothing handed in"
    )
    assert "| 1 | ada | " in (tmp_path / "board/leaderboard.md").read_text()


def test_bad_flags_are_one_sentence(tmp_path):
    for args, says in (
        (dict(), "name either"),
        (dict(hand_ins=tmp_path, submission=tmp_path), "name either"),
        (dict(hand_ins=tmp_path), "needs a folder for the leaderboard"),
        (dict(hand_ins=tmp_path, out=tmp_path, secret=tmp_path / "none"), "cannot be read"),
        (dict(hand_ins=tmp_path / "none", out=tmp_path), "there is no folder"),
        (dict(submission=tmp_path / "none.py"), "there is no file"),
    ):
        with pytest.raises(UserError, match=says):
            program.main(program.Args("01", **args))
