"""The claims in Chinese: docs/claims.zh.toml has their titles and verdicts, docs/claims.zh.md explains them."""

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from common.errors import UserError, explain

FILE = Path(__file__).parents[2] / "docs" / "claims.zh.toml"


class Listed(Protocol):
    """What the table needs of a claim."""

    @property
    def title(self) -> str: ...
    @property
    def chapter(self) -> int: ...


def table(claims: Iterable[Listed], path: Path = FILE) -> str:
    """The table of docs/claims.zh.md. UserError for a claim that the file does not have in Chinese."""
    lines = ["| 说法 | 章 | 结论 |", "|---|---|---|"]
    try:
        texts = tomllib.loads(path.read_text(encoding="utf-8"))
        for claim in claims:
            title, verdict = texts[claim.title]["title"], texts[claim.title]["verdict"]
            lines.append(f"| [{title}](#{anchor(title)}) | {claim.chapter} | {verdict} |")
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise UserError(f"{path} does not have every claim in Chinese ({explain(problem)})") from problem
    return "\n".join(lines)


def anchor(heading: str) -> str:
    """A heading as a link names it: in lower case, spaces as hyphens, no punctuation."""
    kept = "".join(each for each in heading.lower() if each.isalnum() or each in "_ -")
    return kept.replace(" ", "-")
