"""Tables beside pictures: JSON, JSON lines, CSV in its dialects, parquet;
in the encodings that editors and spreadsheets write.
"""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from common.data.sources.listing import is_picture
from common.errors import UserError, explain

KINDS = (".jsonl", ".ndjson", ".csv", ".tsv", ".json", ".parquet", ".txt")  # .txt is a CSV by another name
NAME_COLUMNS = ("file_name", "filename", "file", "image", "img", "image_path", "image_file", "image_name")
FILE_COLUMNS = (*NAME_COLUMNS, "path", "file_path", "filepath", "picture", "photo", "image_id")
DELIMITERS = (",", ";", "\t", "|")


class Row(NamedTuple):
    where: str  # "line 23" or "row 23", for messages
    cells: dict  # by column, whose names are in small letters


class Table(NamedTuple):
    path: Path
    rows: list[Row]
    encoding: str  # "UTF-8", or what was recognised instead

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(name for row in self.rows for name in row.cells))

    @property
    def file_column(self) -> str | None:
        return next((name for name in FILE_COLUMNS if name in self.columns), None)


def read_table(path: Path) -> Table:
    """Every row of a table, or a UserError that names the line at fault."""
    if path.suffix.lower() == ".parquet":
        return Table(path, read_parquet(path), "UTF-8")
    text, encoding = read_text(path)
    try:
        rows = read_json(path, text) if path.suffix.lower() in (".jsonl", ".ndjson", ".json") else read_csv(path, text)
    except RecursionError:
        raise UserError(
            f"{path} cannot be read (its brackets are nested too deeply); write one flat object for each picture"
        ) from None
    return Table(
        path, [Row(where, {column_name(key): cells[key] for key in cells}) for where, cells in rows], encoding
    )


def column_name(key: object) -> str:
    return str(key).strip().lower().replace(" ", "_").replace("-", "_")


# ---------------------------------------------------------------------------------------------------------------- text


def read_text(path: Path) -> tuple[str, str]:
    """(the text of a file, its encoding)"""
    try:
        raw = path.read_bytes()
    except OSError as problem:
        raise UserError(f"{path} cannot be read ({problem.strerror or problem})") from problem
    try:
        return decoded(raw)
    except ValueError:
        raise UserError(
            f"{path} cannot be read as text: it is neither UTF-8, UTF-16, GB18030 nor Windows-1252; save it as UTF-8"
        ) from None


def decoded(raw: bytes) -> tuple[str, str]:
    """(text, encoding): by the mark at its beginning, else the first of UTF-8, UTF-16,
    GB18030 and Windows-1252 that fits.
    """
    for mark, name in (
        (b"\xef\xbb\xbf", "utf-8-sig"),
        (b"\xff\xfe\0\0", "utf-32"),
        (b"\0\0\xfe\xff", "utf-32"),
        (b"\xff\xfe", "utf-16"),
        (b"\xfe\xff", "utf-16"),
    ):
        if raw.startswith(mark):
            return raw.decode(name), "UTF-8" if name == "utf-8-sig" else name.upper()
    if raw.count(0) > len(raw) / 4:  # every other byte of western text in UTF-16
        name = "utf-16-le" if raw[1::2].count(0) > raw[::2].count(0) else "utf-16-be"
        return raw.decode(name), name.upper()
    try:
        return raw.decode("utf-8"), "UTF-8"
    except UnicodeDecodeError:
        pass
    try:
        text = raw.decode("gb18030")
    except UnicodeDecodeError:
        return raw.decode("cp1252"), "Windows-1252"
    wide = [letter for letter in text if not letter.isascii()]  # accents of western text are rare characters here
    frequent = sum(bool(letter.encode("gb2312", "ignore")) for letter in wide)
    try:
        return (text, "GB18030") if frequent > 0.8 * len(wide) else (raw.decode("cp1252"), "Windows-1252")
    except UnicodeDecodeError:
        return text, "GB18030"


# ---------------------------------------------------------------------------------------------------------------- JSON


def read_json(path: Path, text: str) -> list[tuple[str, dict]]:
    """JSON lines; or one list of objects; or {file: object}; or {column: values}."""
    if path.suffix.lower() != ".json" and not text.lstrip().startswith("["):
        lines = [(f"line {i}", line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
        return [(where, an_object(path, where, parse(path, line, int(where.split()[1])))) for where, line in lines]
    value = parse(path, text)
    if isinstance(value, dict):
        value = rows_of_object(value)
    if not isinstance(value, list):
        raise UserError(
            f"{path} cannot be read (it holds {kind_of(value)}); write a list of objects, one for each picture"
        )
    return [(f"row {i}", an_object(path, f"row {i}", row)) for i, row in enumerate(value, 1)]


def parse(path: Path, text: str, line: int | None = None) -> object:
    try:
        return json.loads(text, parse_constant=lambda _: None)  # NaN is how pandas writes an empty cell
    except json.JSONDecodeError as problem:
        place = f"line {line or problem.lineno}, column {problem.colno}"
        form = "every line is one JSON object" if line else "the file is one JSON list of objects"
        raise UserError(f"{path} cannot be read ({place}: {problem.msg}); {form}, each with a file_name") from None
    except ValueError as problem:  # a number of too many digits
        raise UserError(
            f"{path} cannot be read ({f'line {line}: ' if line else ''}{explain(problem)}); correct the file"
        ) from None


def rows_of_object(value: dict) -> object:
    """The rows in one object: of {column: values}, of {file: {...}} or {file:
    caption}, or of {"anything": [{...}, ...]}.
    """
    columns = {key: cells for key, cells in value.items() if column_name(key) in FILE_COLUMNS}
    lists = [cells for cells in value.values() if isinstance(cells, list)]
    if columns and all(isinstance(cells, (dict, list)) for cells in value.values()):  # as pandas writes a frame
        values = {key: cells if isinstance(cells, list) else list(cells.values()) for key, cells in value.items()}
        return [dict(zip(values, cells, strict=False)) for cells in zip(*values.values(), strict=False)]
    if value and all(isinstance(row, dict) for row in value.values()):
        return [{"file_name": key} | row for key, row in value.items()]
    if value and all(isinstance(text, str) for text in value.values()) and any(is_picture(key) for key in value):
        return [{"file_name": key, "text": text} for key, text in value.items()]
    return lists[0] if len(lists) == 1 else [value]


def an_object(path: Path, where: str, row: object) -> dict:
    if not isinstance(row, dict):
        raise UserError(
            f"{path} cannot be read ({where} holds {kind_of(row)}); every row is an object with a file_name"
        )
    return row


def kind_of(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


# ----------------------------------------------------------------------------------------------------------------- CSV


def read_csv(path: Path, text: str) -> list[tuple[str, dict]]:
    """A header and rows, with commas, semicolons, tabs or bars between cells.
    Without a header: files and their captions.
    """
    if "\0" in text:
        raise UserError(f"{path} cannot be read (it holds zero bytes); save it as a table of text")
    first = next((line for line in text.split("\n") if line.strip()), "")
    delimiter = max(DELIMITERS, key=lambda d: (has_file_column(first, d), first.count(d)))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows, header, begin = [], None, 1
    try:
        for cells in reader:
            where, begin = f"line {begin}", reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = header_of(cells)
                if header != cells:
                    rows.append((where, dict(zip(header, cells, strict=False))))
                continue
            if any(cell.strip() for cell in cells[len(header) :]):
                raise UserError(
                    f"{path} cannot be read ({where} has {len(cells)} cells and the header {len(header)}); "
                    f"put a text that holds {delimiter!r} in quotation marks"
                )
            rows.append((where, dict(zip(header, cells, strict=False))))
        if any("\n" in cell for cell in (cells if header else ())) and is_open(text, delimiter):
            raise UserError(
                f"{path} cannot be read ({where}: a quotation mark is opened and never closed); correct that line"
            )
    except csv.Error as problem:
        raise UserError(
            f"{path} cannot be read (line {reader.line_num}: {explain(problem)}); correct that line"
        ) from problem
    return rows


def is_open(text: str, delimiter: str) -> bool:
    """Whether the text ends inside quotation marks."""
    try:
        for _ in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True):
            pass
    except csv.Error as problem:
        return "unexpected end" in str(problem)
    return False


def has_file_column(line: str, delimiter: str) -> bool:
    cells = [cell.strip().strip('"') for cell in line.split(delimiter)]
    return any(column_name(cell) in FILE_COLUMNS or is_picture(cell) for cell in cells)


def header_of(cells: Sequence[str]) -> list[str]:
    """The first line; or file_name and text, where it names a picture itself."""
    files = [i for i, cell in enumerate(cells) if is_picture(cell.strip())]
    if len(files) != 1 or any(column_name(cell) in FILE_COLUMNS for cell in cells):
        return list(cells)
    rest = iter(["text", *(f"column_{k}" for k in range(2, len(cells)))])
    return ["file_name" if i == files[0] else next(rest) for i in range(len(cells))]


def read_parquet(path: Path) -> list[Row]:
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except Exception as problem:  # pyarrow has a family of its own
        raise UserError(f"{path} cannot be read as a parquet file ({explain(problem)})") from problem
    return [Row(f"row {i}", {column_name(key): value for key, value in row.items()}) for i, row in enumerate(rows, 1)]
