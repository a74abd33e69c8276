"""Every number of every program has a range, and what cannot be is refused before main begins."""

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, get_type_hints

import pytest

from common import cli
from common.errors import UserError
from common.io.ranges import MAY_BE_EMPTY, RANGES, Range, check_number, check_saved, leaves, numbers, range_of
from helpers.programs import ROOT, load_program

PROGRAMS = sorted(
    str(path.relative_to(ROOT))
    for folder in ("0*_*", "common", "bench")
    for path in ROOT.glob(f"{folder}/**/*.py")
    if "run(main, Args)" in path.read_text(encoding="utf-8")
)


def test_there_are_programs():
    assert len(PROGRAMS) > 35


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_number_has_a_range_and_a_default_inside_it(program):
    args_type = load_program(program).Args
    hints = get_type_hints(args_type, include_extras=True)
    for field in fields(args_type):
        if {int, float} & set(leaves(hints[field.name])):
            limits = range_of(field.name, hints[field.name])
            assert limits, (
                f"{program}: --{field.name} has no range; add it to common/io/ranges.py, or say Annotated[..., Range(...)]"
            )
            assert all(number in limits for number in numbers(field.default)), (
                f"{program}: the default of --{field.name} is outside its range"
            )


@pytest.mark.parametrize("name", RANGES)
def test_no_range_holds_nan_and_no_message_does_without_its_bound(name):
    limits = RANGES[name]
    assert math.nan not in limits and limits.low - 1 not in limits
    if limits.high < math.inf:
        assert math.inf not in limits and 10 * limits.high + 1 not in limits


@dataclass(frozen=True)
class Args:
    n: int = 64
    lr: float | None = None
    strength: Annotated[float, Range(0, 10, hint="0 is off")] = 1.0
    scales: tuple[float, ...] = (1, 2)
    nothing: Annotated[tuple[str, ...], MAY_BE_EMPTY] = ("a",)
    interval: tuple[float, float] = (0.0, math.inf)
    prompt: str = ""
    image: Path | None = None
    data: str = "digits"
    out: Path = Path("out.png")
    json: Path | None = None
    gif: bool = False


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--n", "0"], "--n must be above 0, not 0; 64 is usual"),
        (["--n", "1000000000"], "--n must be at most 1,000,000, not 1000000000; 64 is usual"),
        (["--lr", "1e99"], "--lr must be at most 100, not 1e+99; 0.001 is usual"),
        (["--lr", "nan"], "--lr must be above 0, not nan; 0.001 is usual"),
        (["--lr", "-inf"], "--lr must be above 0, not -inf; 0.001 is usual"),
        (["--strength", "inf"], "--strength must be at most 10, not inf; 0 is off; 1 is usual"),
        (["--scales", "1", "nan"], "--scales must be 0 or more, not nan; 1 is off; 1 is usual"),
        (["--scales"], "--scales needs at least one value, for instance --scales 1 2"),
        (["--interval", "nan", "inf"], "--interval must be 0 or more, not nan; 0 is usual"),
        (["--n", "9" * 400], r"--n must be at most 1,000,000, not 99999999999999999999... (400 digits); 64 is usual"),
        (
            ["--prompt", "\udcff"],
            r"argument 2 is no text in this system's encoding (\udcff); type it again, or use a UTF-8 locale",
        ),
        (["--json", ""], "--json is empty; name a file or a folder"),
        (["--json", "out.png"], "--json would write over out.png, which --out names; choose another --json"),
        (
            ["--json", "./x/../out.png"],
            "--json would write over x/../out.png, which --out names; choose another --json",
        ),
    ],
)
def test_refused(given, said):
    with pytest.raises(UserError) as problem:
        cli.parse(Args, given)
    assert str(problem.value) == said


@pytest.mark.parametrize(
    "given",
    [[], ["--nothing"], ["--interval", "0", "inf"], ["--lr", "0.1"], ["--prompt", ""], ["--prompt", "番茄" * 9000]],
)
def test_accepted(given):
    assert isinstance(cli.parse(Args, given), Args)


def test_an_output_that_is_an_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(b"picture")
    (tmp_path / "a.gif").write_bytes(b"film")
    (tmp_path / "link.png").symlink_to("a.png")
    (tmp_path / "set").mkdir()
    for given in (
        ["--image", "a.png", "--out", "a.png"],
        ["--image", "a.png", "--out", "link.png"],
        ["--image", "link.png", "--json", "a.png"],
        ["--image", "a.gif", "--out", "a.png", "--gif"],
        ["--data", "set", "--out", "set"],
    ):
        with pytest.raises(UserError, match="would write over .* which --(image|data) names; choose another"):
            cli.parse(Args, given)
    cli.parse(Args, ["--image", "a.png", "--out", "b.png"])


def test_a_name_with_a_value():
    with pytest.raises(UserError, match="^lr must be above 0, not nan; 0.001 is usual$"):
        check_number("lr", math.nan)
    check_number("lr", 0.1)
    check_number("a name without a range", math.nan)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"lr": "fast"}, "sets lr to 'fast'"),
        ({"n": True}, "sets n to 'True'"),
        ({"data": 7}, "sets data to '7'"),
        ({"scales": ("a",)}, "sets scales to"),
        ({"lr": math.nan}, "is damaged, or was changed: --lr must be above 0, not nan"),
        ({"n": None}, "sets n to 'None'"),
    ],
)
def test_settings_from_a_file(changed, said):
    check_saved(Args(lr=1), "config.json")
    with pytest.raises(UserError, match=said):
        check_saved(replace(Args(), **changed), "config.json")


def test_a_name_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    for name, said in (
        ("a" * 300 + ".png", "has a name of 304 characters"),
        ("file/a.png", "is a file, no folder"),
        ("file/b/a.png", "is a file, no folder"),
    ):
        with pytest.raises(UserError, match=said):
            cli.parse(Args, ["--out", name])
    cli.parse(Args, ["--out", "new/folder/a.png", "--json", "file"])
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(UserError, match="you may not write to .* choose another place with --out"):
        cli.parse(Args, ["--out", "a.png"])
