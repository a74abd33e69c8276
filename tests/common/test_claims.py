"""docs/claims.toml: the table of docs/claims.md is made from it, its values are in the text, its commands can run."""

import re
import subprocess
import sys

import pytest

from common.claims import listing
from common.errors import UserError
from helpers.programs import ROOT, load_program

CLAIMS = listing.read_claims()
PAGE = re.sub(r"<!--.*?-->", "", (ROOT / "docs" / "claims.md").read_text(encoding="utf-8"))
SECTIONS = {part.partition("\n")[0]: part for part in PAGE.split("\n### ")[1:]}


def test_the_page_and_the_file_hold_the_same_claims():
    assert [claim.title for claim in CLAIMS] == list(SECTIONS)
    assert len(CLAIMS) >= 13
    assert listing.table(CLAIMS) in PAGE


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.title[:30])
def test_values_sources_and_commands_are_those_of_the_page(claim):
    text = SECTIONS[claim.title]
    numbers = {float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?(?:e-?\d+)?", text)}
    for value in claim.values:
        told = {each for each in (value.value, value.low, value.high) if each is not None}
        assert told <= numbers, f"{value.what}: {told - numbers} is not in docs/claims.md"
        assert value.low is None or value.low <= value.value <= value.high
    for address in re.findall(r"https://[^\s,;]+", claim.source):
        assert address in text
    for command in claim.commands:
        program, *words = command.split()
        assert program.rpartition("/")[2] in text, f"{command} is not in docs/claims.md"
        assert all(word in text for word in words)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.title[:30])
@pytest.mark.parametrize("other_seed", [False, True])
def test_every_command_is_understood_by_its_program(claim, other_seed):
    from common.cli import parse

    if other_seed and not claim.other_seed:
        with pytest.raises(UserError, match="no seed"):
            listing.arguments(claim, other_seed)
        return
    for program, *words in listing.arguments(claim, other_seed):
        args = parse(load_program(program).Args, words)
        if program.endswith("ablate.py"):
            from ddim_schedules import ablation

            assert ablation.read_plan(args.what, args.model, args.measure).experiments


def test_one_claim_is_repeated_with_its_command(monkeypatch, capsys):
    ran = []

    def record(words, cwd):
        ran.append((words, cwd))
        return subprocess.CompletedProcess(words, 0 if len(ran) < 2 else 3)

    monkeypatch.setattr(subprocess, "run", record)
    number = next(k for k, claim in enumerate(CLAIMS, 1) if "interpolate.py" in claim.commands[0])
    assert listing.answer(number, True, False) == 0
    words = [sys.executable, "03_ddim_schedules/interpolate.py", "--seed", "1", "--pairs", "12"]
    assert ran == [(words, listing.ROOT)]
    assert "3.6 to 6.6" in capsys.readouterr().out
    assert listing.answer(1, False, False) == 3  # a command that fails ends the repetition with its exit code
    assert len(ran) == 2


def test_the_list_shows_verdict_interval_source_and_command(capsys):
    assert listing.answer(None, False, False) == 0
    out = capsys.readouterr().out
    for claim in CLAIMS:
        assert claim.title in out and claim.verdict in out and claim.source in out
    assert "(3.6 to 6.6)" in out and "python 03_ddim_schedules/ablate.py respacing" in out


@pytest.mark.parametrize("number, other_seed, expected", [(99, False, "choose 1 to"), (None, True, "needs --run")])
def test_a_claim_that_does_not_exist(number, other_seed, expected):
    with pytest.raises(UserError, match=expected):
        listing.answer(number, other_seed, False)


def test_a_damaged_file(tmp_path):
    (tmp_path / "claims.toml").write_text("[[claim]]\ntitle = 3\n")
    with pytest.raises(UserError, match="cannot be read"):
        listing.read_claims(tmp_path / "claims.toml")
