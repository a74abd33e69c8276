"""The tables of pages that are made from results files: docs/results.toml says which, and from what.

A table stands between two markers, `<!-- table NAME -->` and `<!-- end of table -->`. Only what is between them is written.
"""

import math
import re
import string
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import UserError, explain
from common.io.files import write_atomically
from common.io.tables import read_csv

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docs" / "results.toml"
BEGIN, END = "<!-- table {} -->", "<!-- end of table -->"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class ResultsTable:
    """A table of a page, made from a results file."""

    name: str
    page: str  # paths from the project's folder
    files: tuple[str, ...]  # the rows of all of them, in this order
    columns: tuple[tuple[str, str], ...]  # (title, template): "{kept:.2f} ({kept_low:.2f} to {kept_high:.2f})"
    keep: Mapping[str, tuple[str, ...]]  # {column: values of the rows that are shown}
    sort: str = ""  # column of numbers to sort by; rows without one come last
    shown: Mapping[str, str] = field(default_factory=dict)  # {"column=value" of the file: what the page says}
    within: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # {column: ends of what is possible}

    def text(self, root: Path = ROOT) -> str:
        """The table in Markdown."""
        read = (row for file in self.files for row in read_csv(root / file))
        rows = [row for row in read if all(row.get(k) in v for k, v in self.keep.items())]
        if not rows:
            raise UserError(f"{', '.join(self.files)}: no row for the table {self.name}; see docs/results.toml")
        if self.sort:
            rows.sort(key=lambda row: number(row[self.sort], math.inf))
        lines = [[title for title, _ in self.columns], ["---"] * len(self.columns)]
        lines += [[self.cell(template, row) for _, template in self.columns] for row in rows]
        return "".join(f"| {' | '.join(cells)} |".replace("|  |", "| |") + "\n" for cells in lines)

    def cell(self, template: str, row: Row) -> str:
        """A template with the values of a row; empty where one of them was not measured."""
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name]
        if missing := [name for name in names if name not in row]:
            raise UserError(f"{', '.join(self.files)}: no column {missing[0]}, which the table {self.name} shows")
        if any(row[name] in ("", "nan") and f"{name}={row[name]}" not in self.shown for name in names):
            return ""
        return Shown().vformat(template, (), {name: self.value(name, row[name]) for name in names})

    def value(self, column: str, text: str) -> float | str:
        if said := self.shown.get(f"{column}={text}"):
            return said
        found = number(text)
        low, high = self.within.get(re.sub("_(low|high)$", "", column), (-math.inf, math.inf))
        return text if math.isnan(found) else min(max(found, low), high)


class Shown(string.Formatter):
    """A format of numbers leaves texts as they are, and puts a space before a percent sign."""

    def format_field(self, value: Any, format_spec: str) -> str:
        return value if isinstance(value, str) else super().format_field(value, format_spec).replace("%", " %")


def number(text: str, otherwise: float = math.nan) -> float:
    """A cell as a number."""
    try:
        return float(text)
    except ValueError:
        return otherwise


def read_tables(path: Path = FILE) -> list[ResultsTable]:
    """All tables that are made from results files. UserError for a file that cannot be read."""
    try:
        rows: list[dict[str, Any]] = tomllib.loads(path.read_text(encoding="utf-8"))["table"]
        made = [
            {
                "columns": tuple((title, template) for title, template in row["columns"]),
                "files": tuple([row["file"]] if "file" in row else row["files"]),
                "keep": {column: tuple(values) for column, values in row.get("keep", {}).items()},
            }
            for row in rows
        ]
        return [
            ResultsTable(**{k: v for k, v in row.items() if k != "file"} | each)
            for row, each in zip(rows, made, strict=True)
        ]
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise UserError(f"{path} cannot be read as a list of tables ({explain(problem)})") from problem


def with_table(page: str, name: str, table: str) -> str:
    """The text of a page with this table between its markers. UserError if they are not there exactly once."""
    begin = BEGIN.format(name)
    pattern = re.compile(re.escape(begin) + r"\n(.*?)" + re.escape(END), re.DOTALL)
    if len(pattern.findall(page)) != 1:
        raise UserError(f"the page has not exactly one table between '{begin}' and '{END}'")
    return pattern.sub(lambda _: f"{begin}\n\n{table}\n{END}", page)


def write_tables(tables: Mapping[tuple[str, str], str], root: Path = ROOT) -> list[Path]:
    """Write tables into their pages; the pages that changed. tables: {(page, name): Markdown}"""
    changed = []
    for page in dict.fromkeys(page for page, _ in tables):
        before = after = (root / page).read_text(encoding="utf-8")
        for (where, name), table in tables.items():
            after = with_table(after, name, table) if where == page else after
        if after != before:
            write_page(root / page, after)
            changed.append(root / page)
    return changed


def write_page(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))
