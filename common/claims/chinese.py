"""The tables of docs/claims.zh.md. docs/claims.zh.toml has the claims' titles and verdicts and the names of values in Chinese."""

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from common.claims.claim import Claim
from common.claims.results import ROOT
from common.errors import UserError, explain

FILE = ROOT / "docs" / "claims.zh.toml"
ANSWERS = {"yes": "是", "no": "否"}


def claim_table(claims: Iterable[Claim], path: Path = FILE) -> str:
    """All claims with their verdicts. UserError for a claim that the file does not have."""

    def cells(texts: Mapping[str, Any]) -> list[list[str]]:
        rows = [(texts[claim.title]["title"], str(claim.chapter), texts[claim.title]["verdict"]) for claim in claims]
        return [[f"[{title}](#{anchor(title)})", chapter, verdict] for title, chapter, verdict in rows]

    return table(["说法", "章", "结论"], cells, path)


def repetition_table(rows: Iterable[Mapping[str, str]], path: Path = FILE) -> str:
    """The cells of the English table in Chinese. UserError for a value that the file does not have."""

    def cells(texts: Mapping[str, Any]) -> list[list[str]]:
        return [
            [
                texts["values"][row["value"]],
                interval(row["documented"]),
                interval(row["repeated"]),
                row["seed"],
                ANSWERS[row["agrees"]],
                ANSWERS[row["inside"]],
            ]
            for row in rows
        ]

    return table(["数值", "记录的结果", "重测", "种子", "一致", "在记录的区间内"], cells, path)


def table(titles: list[str], cells: Callable[[Mapping[str, Any]], list[list[str]]], path: Path) -> str:
    """A table of what `cells` makes of the file's texts."""
    try:
        rows = cells(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise UserError(f"{path} does not have everything in Chinese ({explain(problem)})") from problem
    return "".join(f"| {' | '.join(row)} |\n" for row in [titles, ["---"] * len(titles), *rows])


def interval(text: str) -> str:
    """0.97 (0.94 to 1.01) as 0.97（0.94 到 1.01）"""
    return re.sub(r" \((\S+) to (\S+)\)", r"（\1 到 \2）", text)


def anchor(heading: str) -> str:
    """A heading as a link names it: in lower case, spaces as hyphens, no punctuation."""
    kept = "".join(each for each in heading.lower() if each.isalnum() or each in "_ -")
    return kept.replace(" ", "-")
