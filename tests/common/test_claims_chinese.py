"""docs/claims.zh.toml and docs/claims.zh.md: every claim in Chinese, with the values, sources and commands of the English page."""

import re
import tomllib
from collections import Counter

import pytest

from common.claims import chinese
from common.claims.claim import read_claims
from common.errors import UserError
from helpers.programs import ROOT

TEXTS = tomllib.loads(chinese.FILE.read_text(encoding="utf-8"))
CLAIMS = read_claims()


def sections(name: str) -> dict[str, str]:
    """{heading: text} of the claims of a page."""
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    return {part.partition("\n")[0]: part.partition("\n")[2] for part in page.split("\n### ")[1:]}


ENGLISH, CHINESE = sections("claims.md"), sections("claims.zh.md")


def test_every_claim_is_in_both_languages_in_the_same_order():
    titles = [claim.title for claim in CLAIMS]
    assert [name for name in TEXTS if name != "values"] == titles == list(ENGLISH)
    assert list(CHINESE) == [TEXTS[title]["title"] for title in titles]


def test_every_value_that_can_be_repeated_has_a_name():
    """The tables themselves are compared with what the program makes in test_claims.py."""
    assert list(TEXTS["values"]) == [value.what for claim in CLAIMS if claim.results for value in claim.values]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.title[:30])
def test_a_claim_is_the_same_in_chinese(claim):
    """Its parts, its code, its addresses, and its quoted numbers with their intervals."""
    english, translated = ENGLISH[claim.title], CHINESE[TEXTS[claim.title]["title"]]
    assert re.findall(r"^\*\*(\w+)。\*\* \S", translated, re.MULTILINE) == ["说法", "出处", "命令", "结果"]
    for part in (r"`[^`]+`", r"\]\((https:[^)]+)\)", r"[\d.]+(?: %| s| MB)?<!--results \d\d-->"):
        assert Counter(re.findall(part, english)) == Counter(re.findall(part, translated)), part
    ranges = r"(\d[\d.]*){}(\d[\d.]*)"
    assert Counter(re.findall(ranges.format(" to "), english)) == Counter(
        re.findall(ranges.format(" 到 "), translated)
    )


def test_a_claim_without_chinese(tmp_path):
    (tmp_path / "some.toml").write_text('["another"]\ntitle = "别的"\nverdict = "没有看到"\n', encoding="utf-8")
    with pytest.raises(UserError, match="does not have everything in Chinese"):
        chinese.claim_table(CLAIMS, tmp_path / "some.toml")
    with pytest.raises(UserError, match=r"none\.toml"):
        chinese.claim_table(CLAIMS, tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [("EMA、P2 权重和截断没有影响", "emap2-权重和截断没有影响"), ("300 轮与 2,000 轮", "300-轮与-2000-轮")],
)
def test_an_anchor_is_that_of_github(heading, anchor):
    assert chinese.anchor(heading) == anchor
