"""What a class has handed in: the roster, and the files of each student."""

import csv
import io
import re
import zipfile
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath

from common.errors import UserError
from common.grade.marking.results import Work

SUFFIXES = (".py", ".ipynb", ".zip")
LARGEST = 10 * 2**20  # bytes of a file that is taken
COLUMNS = {  # names of the roster's columns in other programs
    "id": ("id", "student_id", "student id", "id number", "sid", "username"),
    "name": ("name", "full name", "fullname"),
    "first_name": ("first_name", "first name"),
    "last_name": ("last_name", "last name", "surname"),
    "email": ("email", "email address", "e-mail"),
    "submitted": ("submitted", "timestamp", "last modified (submission)"),
}


@dataclass(frozen=True)
class Student:
    id: str
    name: str = ""
    first_name: str = ""
    last_name: str = ""
    email: str = ""
    submitted: str = ""  # ISO time, where the roster has it

    @property
    def full_name(self) -> str:
        return self.name or f"{self.first_name} {self.last_name}".strip()


@dataclass(frozen=True)
class HandIn:
    """What a student handed in for one chapter."""

    work: Work | None  # None where nothing can be graded
    status: str = ""  # why not
    time: datetime | None = None  # when it was handed in
    notes: list[str] = field(default_factory=list)


def read_roster(path: Path) -> list[Student]:
    """The students of a CSV file with a column `id`, and perhaps name, first_name, last_name, email, submitted."""
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise UserError(f"the roster {path} cannot be read as CSV in UTF-8 ({problem})") from None
    students = []
    for row in rows:
        lower = {
            (name or "").strip().lower(): (value or "").strip() for name, value in row.items() if name is not None
        }
        found = {key: next((lower[n] for n in names if lower.get(n)), "") for key, names in COLUMNS.items()}
        if found["id"] or found["email"]:
            students.append(Student(**(found | {"id": found["id"] or found["email"]})))
    if not students:
        raise UserError(f"the roster {path} has no student; it needs a column id (or student_id, ID number, email)")
    ids = [student.id for student in students]
    if twice := sorted({each for each in ids if ids.count(each) > 1}):
        raise UserError(f"the roster {path} has {twice[0]} twice")
    return students


def students_of(folder: Path, roster: Path | None) -> list[Student]:
    """The roster's students, or without a roster one for each file or folder."""
    if roster:
        return read_roster(roster)
    entries = [each for each in sorted(folder.iterdir()) if each.is_dir() or each.suffix.lower() in SUFFIXES]
    return [Student(name) for name in dict.fromkeys(each.stem if each.is_file() else each.name for each in entries)]


def hand_in(folder: Path, student: Student, chapter: str, several: bool) -> HandIn:
    """What a student handed in for a chapter ("01").

    Found are ID.py, ID.ipynb, ID.zip, ID_anything.py, and the files in folders ID, ID_anything or NAME_anything, as
    learning platforms name them. With several chapters, the number must be in the path: ID/01.py, 01/ID.ipynb.
    """
    files = sorted(path for path in candidates(folder, student) if not several or names_chapter(path, folder, chapter))
    real = [path for path in files if not path.is_symlink() and path.is_file()]
    if not real:
        kinds = "a link, which is not followed" if files else "nothing handed in"
        return HandIn(None, kinds)
    main = sorted(real, key=lambda path: (rank(path), path.stat().st_mtime))[-1]
    when = datetime.fromtimestamp(main.stat().st_mtime)
    if student.submitted:
        try:
            when = datetime.fromisoformat(student.submitted)
        except ValueError:
            raise UserError(
                f"the time {student.submitted} of {student.id} is not understood; write it as 2026-12-01T23:59"
            ) from None
    if main.stat().st_size > LARGEST:
        return HandIn(None, f"{main.name} is larger than {LARGEST // 2**20} MB", when)
    try:
        data = main.read_bytes()
    except OSError as problem:
        return HandIn(None, f"{main.name} cannot be read ({problem.strerror})", when)
    notes = [f"graded is {main.name}; there are others"] if len([p for p in real if rank(p) == rank(main)]) > 1 else []
    if zipfile.is_zipfile(io.BytesIO(data)):
        return from_zip(data, main.name, when, chapter)
    beside = {p.name: p.read_bytes() for p in real if p != main and p.parent == main.parent and small(p)}
    beside = {} if main.parent == folder else beside  # there they are others' files
    return HandIn(Work(beside | {main.name: data}, main.name, main.name), "", when, notes)


def small(path: Path) -> bool:
    return path.suffix == ".py" and path.stat().st_size < LARGEST // 10


def rank(path: Path) -> tuple[bool, bool]:
    """The file with the answers is named exercises or answers, and not a helper's."""
    return bool(re.search(r"exercise|answer|solution|submission|lesson", path.stem.lower())), path.suffix != ".zip"


def candidates(folder: Path, student: Student) -> list[Path]:
    names = [name.lower() for name in (student.id, student.full_name, student.email) if name]

    def is_theirs(entry: Path) -> bool:
        name = (entry.stem if entry.is_file() else entry.name).lower()
        return any(name == each or name.startswith((f"{each}_", f"{each}-", f"{each} ")) for each in names)

    found: list[Path] = []
    for entry in folder.iterdir():
        if is_theirs(entry):
            found += [entry] if not entry.is_dir() else list(entry.rglob("*"))
        elif entry.is_dir() and not entry.is_symlink():  # a folder for each assignment
            found += [each for each in entry.iterdir() if each.is_file() and is_theirs(each)]
    hidden = {"__MACOSX", ".ipynb_checkpoints", "__pycache__"}
    return [p for p in found if p.suffix.lower() in SUFFIXES and not hidden & set(p.parts)]


def names_chapter(path: Path, folder: Path, chapter: str) -> bool:
    """Whether a path names this chapter: 01.py, chapter_1.ipynb, 01_ddpm_mnist/exercises.py."""
    numbers = re.findall(r"(?<!\d)0?([1-9])(?!\d)", str(path.relative_to(folder)))
    return chapter.lstrip("0") in numbers[-1:] or chapter in re.findall(r"(?<!\d)\d\d(?!\d)", path.name)


def from_zip(data: bytes, name: str, when: datetime | None, chapter: str) -> HandIn:
    """The Python files or the notebook in a zip archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = [each for each in archive.infolist() if each.filename.lower().endswith((".py", ".ipynb"))]
            infos = [
                each for each in infos if "__MACOSX" not in each.filename and ".ipynb_checkpoints" not in each.filename
            ]
            if sum(each.file_size for each in infos) > LARGEST or len(infos) > 200:
                return HandIn(None, f"{name} holds more than {LARGEST // 2**20} MB", when)
            files = {PurePosixPath(each.filename).name: archive.read(each) for each in infos}
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError, ValueError, EOFError) as problem:
        return HandIn(None, f"{name} is a damaged or encrypted archive ({type(problem).__name__})", when)
    if not files:
        return HandIn(None, f"{name} holds no Python file and no notebook", when)
    best = sorted(files, key=lambda each: (rank(Path(each)), chapter in each, each))[-1]
    helpers = {each: content for each, content in files.items() if each == best or each.endswith(".py")}
    return HandIn(Work(helpers, best, best), "", when, [f"from {name}"])
