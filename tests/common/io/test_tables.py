"""CSV files and printed tables: what is written reads back, and columns line up."""

from typing import NamedTuple

import pytest

from common.errors import UserError
from common.io.tables import add_row, align, format_table, read_csv, write_csv


class Result(NamedTuple):
    name: str
    error: float


def test_csv_reads_back(tmp_path):
    path = write_csv(
        tmp_path / "new" / "results.csv", [{"name": "番茄炒蛋, hot", "error": 0.1 + 0.2}, {"name": "b", "seed": 3}]
    )
    assert path.read_bytes().startswith(b"name,error,seed\r\n")
    assert read_csv(path) == [
        {"name": "番茄炒蛋, hot", "error": "0.30000000000000004", "seed": ""},
        {"name": "b", "error": "", "seed": "3"},
    ]
    assert read_csv(write_csv(path, [Result("a", 0.5)])) == [{"name": "a", "error": "0.5"}]
    assert write_csv(path, [], ["name"]).read_bytes() == b"name\r\n"


def test_cut_rows_are_left_out(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\r\n1,0.5\r\n2", newline="")
    assert read_csv(path) == [{"step": "1", "loss": "0.5"}]
    with pytest.raises(UserError, match="cannot be read"):
        read_csv(tmp_path / "missing.csv")


def test_added_row_replaces_later_ones(tmp_path):
    path = tmp_path / "quality.csv"
    for step in (10, 20, 30, 20):
        add_row(path, {"step": step, "psnr": f"{step / 2:.1f}"}, ["step", "psnr"])
    assert [row["step"] for row in read_csv(path)] == ["10", "20"]


def test_columns_line_up():
    rows = [Result("heun", 0.25), Result("dpmpp_2m", 12.5)]
    assert format_table(rows) == "name      error\nheun       0.25\ndpmpp_2m   12.5"
    assert format_table([{"a": 1, "b": None}, {"c": 3}]) == "a  b  c\n1\n      3"
    assert align([["a", "bb"], ["ccc", "d"]], left=2, gap=1) == "a   bb\nccc d"
