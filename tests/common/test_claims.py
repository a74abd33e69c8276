"""docs/claims.toml: the table of docs/claims.md is made from it, its values are in the text, its commands can run; and
the tables that are made from results files.
"""

import dataclasses
import re
import subprocess

import pytest

from common.claims import claim as claims
from common.claims import listing, repetition, results
from common.errors import UserError
from common.io.tables import read_csv, write_csv
from helpers.programs import ROOT, load_program

CLAIMS = claims.read_claims()
PAGE = re.sub(r"<!--.*?-->", "", (ROOT / "docs" / "claims.md").read_text(encoding="utf-8"))
SECTIONS = {part.partition("\n")[0]: part for part in PAGE.split("\n### ")[1:]}
TABLES = listing.made_tables()
MARKER = re.compile(results.BEGIN.format(r"(\w+)"))


def test_the_page_and_the_file_hold_the_same_claims():
    assert [claim.title for claim in CLAIMS] == list(SECTIONS)
    assert len(CLAIMS) >= 13
    assert listing.claim_table(CLAIMS) in PAGE


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
@pytest.mark.parametrize("seed", [None, 1000])
def test_every_command_is_understood_by_its_program(claim, seed, tmp_path):
    from common.cli import parse

    if seed is not None and not claim.seed:
        with pytest.raises(UserError, match="no seed"):
            repetition.arguments(claim, seed)
        return
    for program, *words in repetition.arguments(claim, seed, tmp_path if claim.results else None):
        args = parse(load_program(program).Args, words)
        assert not claim.results or args.out == tmp_path
        if program.endswith("ablate.py"):
            from ddim_schedules import ablation

            experiments = ablation.read_plan(args.what, args.model, args.measure).experiments
            seeds = {max(each.training.seed, each.sampling.noise_seed) for each in experiments}
            assert seed is None or seeds == {1000 + k for k in range(3) if f"{{{k}}}" in claim.seed}
        elif seed is not None:
            assert args.seed == seed


def position_of(program: str) -> int:
    return next(k for k, claim in enumerate(CLAIMS, 1) if program in claim.commands[0])


@pytest.fixture
def copied(monkeypatch, tmp_path):
    """Results and repetitions in a folder of their own, and the commands that are run, which write the documented
    results again.
    """
    ran = []
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(repetition, "ROOT", tmp_path)
    monkeypatch.setattr(repetition, "REPEATED", tmp_path / "docs" / "repeated_claims.csv")
    monkeypatch.setattr(listing, "write_tables", lambda: ran.append("tables"))

    def record(words, cwd):
        ran.append(words[1:])
        if "--out" in words:
            folder = tmp_path / words[words.index("--out") + 1]
            folder.mkdir(parents=True)
            file = next(each.file for each in CLAIMS if words[1] in each.commands[0])
            (folder / file.name).write_text(file.read_text())
        return subprocess.CompletedProcess(words, 0 if words[1].endswith("interpolate.py") else 3)

    monkeypatch.setattr(subprocess, "run", record)
    return ran


def test_a_claim_is_repeated_and_the_comparison_is_kept(copied, capsys):
    number = position_of("interpolate.py")
    assert listing.answer(number, 7, record=True) == 0
    words = [
        "03_ddim_schedules/interpolate.py",
        "--seed",
        "7",
        "--out",
        f"runs/claims/{number}-seed-7",
        "--pairs",
        "12",
    ]
    assert copied == [words, "tables"]
    rows = repetition.read_repetitions()
    assert [(row.seed, row.agrees, row.inside) for row in rows] == [(7, "yes", "yes")] * 4
    # inverting an image with DDIM draws no noise, so another seed says nothing of that value
    assert not any("DDIM latents" in row.what for row in rows)
    assert rows[0].value == rows[0].documented and rows[0].low < rows[0].value < rows[0].high
    assert "4 of 4 values agree" in capsys.readouterr().out


def test_a_command_that_fails_ends_the_repetition(copied):
    assert listing.answer(position_of("ablate.py optimizers")) == 3
    assert len(copied) == 1


@pytest.mark.parametrize(
    "value, low, high, expected",
    [
        (1.0, 0.9, 1.1, "yes yes"),  # of 1.1 (0.9 to 1.3)
        (1.4, 1.1, 1.7, "yes no"),  # 0.3 apart, and the difference is uncertain by 0.36
        (1.5, 1.3, 1.7, "no no"),  # 0.4 apart, uncertain by 0.28
        (0.85, 0.84, 0.86, "no no"),
    ],
)
def test_what_agrees(value, low, high, expected, tmp_path, monkeypatch):
    for name, row in (("old", (1.1, 0.9, 1.3)), ("new", (value, low, high))):
        (tmp_path / f"{name}.csv").write_text("kind,m,m_low,m_high\nb,1,1,1\na,{},{},{}\n".format(*row))
    one = claims.Value("m", row={"kind": "a"}, column="m")
    claim = dataclasses.replace(CLAIMS[0], values=(one,), results="old.csv")
    monkeypatch.setattr(claims.Claim, "file", tmp_path / "old.csv")
    (found,) = repetition.compare(claim, tmp_path / "new.csv", 5)
    assert f"{found.agrees} {found.inside}" == expected
    with pytest.raises(UserError, match="not exactly one value of n"):
        dataclasses.replace(one, column="n").read(tmp_path / "new.csv")


def test_the_repetitions_are_of_the_documented_values():
    """Documented values that were measured again make a repetition stale: run it again with --record."""
    rows = repetition.read_repetitions()
    assert len({row.claim for row in rows}) >= 2
    for row in rows:
        claim = next(each for each in CLAIMS if each.title == row.claim)
        value = next(each for each in claim.values if each.what == row.what)
        old = value.read(claim.file)
        assert (row.documented, row.documented_low, row.documented_high) == (old.value, old.low, old.high)
        new = dataclasses.replace(old, value=row.value, low=row.low, high=row.high)
        assert row.agrees == ("yes" if repetition.agree(new, old) else "no")
        assert row.inside == ("yes" if old.low <= row.value <= old.high else "no")
        assert int(row.seed) > 0, "the documented values have seed 0"
    for run in {
        (row.claim, row.seed) for row in rows
    }:  # one share of a few images may be equal by chance, a run never
        again = [row for row in rows if (row.claim, row.seed) == run]
        assert sum(row.value != row.documented for row in again) > len(again) / 2, "the seed changes the values"


# ------------------------------------------------------------------------------------------- tables of results files


@pytest.mark.parametrize("page, name", TABLES)
def test_a_table_is_the_one_of_its_file(page, name):
    """If this fails: python -m common.claims --tables"""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert results.with_table(text, name, TABLES[page, name]) == text


def test_every_marker_and_every_results_file_has_a_table():
    pages = [*ROOT.glob("0*/RESULTS.md"), *(ROOT / "docs").glob("*.md")]
    marked = {
        (str(p.relative_to(ROOT)), name) for p in pages for name in MARKER.findall(p.read_text(encoding="utf-8"))
    }
    assert marked == TABLES.keys()
    files = {str(path.relative_to(ROOT)) for path in ROOT.glob("0*/results/*")}
    assert files == {file for table in results.read_tables() for file in table.files}


def test_a_changed_file_changes_its_table(tmp_path):
    for table in results.read_tables():
        column = next(number for _, cell in table.columns[1:] for number in re.findall(r"{(\w+):", cell))
        for file in table.files:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            rows = read_csv(ROOT / file)
            for row in rows:
                if row[column]:
                    row[column] = "0.5" if float(row[column]) < 0.49 else "0.2"
            write_csv(tmp_path / file, rows)
        assert table.text(tmp_path) != TABLES[table.page, table.name]
        page = tmp_path / table.page
        page.write_text((ROOT / table.page).read_text(encoding="utf-8"), encoding="utf-8")
        made = {(table.page, table.name): table.text(tmp_path)}
        assert results.write_tables(made, tmp_path) == [page]
        assert results.write_tables(made, tmp_path) == []


def test_cells(tmp_path):
    (tmp_path / "a.csv").write_text("k,m,m_low,m_high\nb,0.5,-0.1,1.3\na,,,\n")
    (tmp_path / "b.csv").write_text("k,other,m,m_low,m_high\nc,0,nan,1,2\n")
    columns = (("kind", "{k}"), ("m", "{m:.1f} ({m_low:.1f} to {m_high:.1f})"))
    table = results.ResultsTable(
        "t", "p.md", ("a.csv", "b.csv"), columns, {}, shown={"k=b": "B"}, within={"m": (0, 1)}
    )
    assert table.text(tmp_path) == "| kind | m |\n| --- | --- |\n| B | 0.5 (0.0 to 1.0) |\n| a | |\n| c | |\n"
    assert dataclasses.replace(table, columns=(("m", "{m:.1%}"),)).text(tmp_path).splitlines()[2] == "| 50.0 % |"
    with pytest.raises(UserError, match="no column x"):
        dataclasses.replace(table, columns=(("x", "{x}"),)).text(tmp_path)
    with pytest.raises(UserError, match="no row"):
        dataclasses.replace(table, keep={"k": ("z",)}).text(tmp_path)
    with pytest.raises(UserError, match="exactly one table"):
        results.with_table("nothing here", "t", "")
    (tmp_path / "results.toml").write_text("[[table]]\nname = 3\n")
    with pytest.raises(UserError, match="cannot be read"):
        results.read_tables(tmp_path / "results.toml")


def test_the_list_shows_verdict_interval_source_and_command(capsys):
    assert listing.answer(None) == 0
    out = capsys.readouterr().out
    for claim in CLAIMS:
        assert claim.title in out and claim.verdict in out and claim.source in out
    assert "(3.5 to 6.6)" in out and "python 03_ddim_schedules/ablate.py respacing" in out


@pytest.mark.parametrize(
    "number, flags, expected",
    [
        (99, {}, "choose 1 to"),
        (None, {"seed": 3}, "--seed needs --run"),
        (None, {"record": True}, "--record needs --run"),
        (1, {"record": True}, "writes no results file"),
    ],
)
def test_what_cannot_be_done(number, flags, expected):
    with pytest.raises(UserError, match=expected):
        listing.answer(number, **flags)


def test_a_damaged_file(tmp_path):
    (tmp_path / "claims.toml").write_text("[[claim]]\ntitle = 3\n")
    with pytest.raises(UserError, match="cannot be read"):
        claims.read_claims(tmp_path / "claims.toml")
