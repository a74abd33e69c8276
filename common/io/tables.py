"""Tables: CSV files that the programs write, and the aligned columns that they print.

A row is a mapping from column names to values, or a NamedTuple. Rows may have different columns: a table has the
columns of all rows, in the order in which they first appear, and a cell that a row lacks is empty.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

from common.errors import UserError, explain
from common.io.files import write_atomically


class NamedRow(Protocol):
    """Any NamedTuple."""

    def _asdict(self) -> dict[str, Any]: ...


Row = Mapping[str, Any] | NamedRow


def write_csv(path: Path, rows: Iterable[Row], columns: Sequence[str] | None = None) -> Path:
    """Write rows as CSV in UTF-8, the whole file or nothing, with every digit of their numbers.

    columns  names and order of the columns; by default those of the rows
    """
    records = [as_mapping(row) for row in rows]
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, columns or columns_of(records), restval="")
    table.writeheader()
    table.writerows(records)
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))
    return path


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file that `write_csv` wrote. A row that is cut short, as after `kill -9`, is left out."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as problem:
        raise UserError(f"{path} cannot be read ({explain(problem)})") from problem
    return [row for row in rows if None not in row and None not in row.values()]


def add_row(path: Path, row: Mapping[str, Any], columns: Sequence[str] | None = None, key: str = "step") -> Path:
    """Add a row to a CSV file that is sorted by `key`, an integer; rows with the same or a higher key are removed.

    This is for a run that is resumed from an earlier checkpoint and measures the same steps again.
    """
    earlier = read_csv(path) if path.exists() else []
    return write_csv(path, [*(old for old in earlier if int(old[key]) < row[key]), row], columns)


def format_table(rows: Iterable[Row], left: int = 1, gap: int = 2) -> str:
    """The rows below their column names, aligned by `align`. Values are shown by str(); None is an empty cell."""
    records = [as_mapping(row) for row in rows]
    columns = columns_of(records)
    return align([columns, *([record.get(name) for name in columns] for record in records)], left, gap)


def print_table(rows: Iterable[Row], left: int = 1, gap: int = 2) -> None:
    """Print `format_table(rows, left, gap)`."""
    print(format_table(rows, left, gap))


def align(lines: Iterable[Sequence[object]], left: int = 1, gap: int = 2) -> str:
    """Lines of cells as text, each column as wide as its widest cell, without blanks at the ends of lines.

    left  number of columns that are aligned to the left; the others, mostly numbers, are aligned to the right
    gap   number of blanks between two columns
    """
    cells = [["" if cell is None else str(cell) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip_longest(*cells, fillvalue="")]

    def line_of(texts: list[str]) -> str:
        padded = [text.ljust(width) for text, width in zip(texts[:left], widths, strict=False)]
        padded += [text.rjust(width) for text, width in zip(texts[left:], widths[left:], strict=False)]
        return (" " * gap).join(padded).rstrip()

    return "\n".join(map(line_of, cells))


def as_mapping(row: Row) -> Mapping[str, Any]:
    """A row as a mapping from column names to values."""
    return row if isinstance(row, Mapping) else row._asdict()


def columns_of(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """The column names of all records, in the order in which they first appear."""
    return list(dict.fromkeys(name for record in records for name in record))
