"""The lessons: each notebook holds the cells of its source, runs from top to bottom,
and is fit to be read on the web.

A chapter's lesson is executed in one of its languages. The environment variable LESSON_LANGUAGE=en, zh or both chooses;
without it, the language changes every day: odd chapters are in English on even days of the year, even chapters on odd
days.
"""

import ast
import base64
import datetime
import importlib
import io
import os
import shutil
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from common import viz
from common.errors import UserError
from common.grade import chapter, lessons
from helpers.programs import ROOT

LESSONS = sorted(path.parent for path in ROOT.glob("[0-9][0-9]_*/lesson.py"))
FOLDERS = [*LESSONS, ROOT / "docs" / "debugging"]
PAIRS = [
    (folder, language)
    for folder in FOLDERS
    for language in ("en", "zh")
    if lessons.source_of(folder, language).exists()
]
MEGABYTES = 1.5

TINY = """# %% [markdown]
# Words

# %%
import sys
print("hello", file=sys.stderr)
6 * 7

# %%
import matplotlib.pyplot as plt
plt.plot([1, 2])
plt.show()
"""


def lesson(folder, source: str = TINY):
    (folder / "lesson.py").write_text(source, encoding="utf-8")
    return folder


def png(picture: Image.Image, kind: str = "PNG") -> str:
    file = io.BytesIO()
    picture.save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


def pictures(cell) -> int:
    kinds = {"image/png", "image/jpeg"}
    return sum(bool(kinds & output.get("data", {}).keys()) for output in cell.get("outputs", []))


# ----------------------------------------------------------------------------------------------------- every chapter's


def test_there_are_lessons():
    assert [folder.name for folder in LESSONS][:1] == ["01_ddpm_mnist"]


def name_of(part) -> str:
    return getattr(part, "name", part)


@pytest.mark.parametrize(("folder", "language"), PAIRS, ids=name_of)
def test_notebook_holds_the_cells_of_its_source(folder, language):
    lessons.check(folder, language)


@pytest.mark.parametrize(("folder", "language"), PAIRS, ids=name_of)
def test_notebook_is_fit_for_the_web(folder, language):
    built = lessons.read_notebook(folder, language)
    outputs = [output for cell in built.cells for output in cell.get("outputs", [])]
    assert lessons.notebook_of(folder, language).stat().st_size <= MEGABYTES * 1e6
    assert sum(pictures(cell) for cell in built.cells) >= 5
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert not lessons.machine_paths(built)
    assert all(not cell.metadata for cell in built.cells), "no execution times, which would change with every build"


def languages_to_run(chapter: int, there: list[str], day: int, wanted: str | None) -> list[str]:
    """The languages in which a chapter's lesson is executed.

    there   the languages that the lesson has
    day     of the year, from 1
    wanted  the value of LESSON_LANGUAGE
    """
    if wanted not in (None, "", "en", "zh", "both"):
        raise UserError(f"LESSON_LANGUAGE is '{wanted}'; it must be en, zh or both")
    if wanted == "both":
        return there
    turn = wanted or ("en" if (chapter + day) % 2 else "zh")
    return [turn] if turn in there else there[:1]


TODAY = datetime.date.today().timetuple().tm_yday


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_lesson_runs(folder, capsys):
    """In a kernel that starts in the course's folder, whereas the shipped notebook was built in the chapter's."""
    there = [language for each, language in PAIRS if each == folder]
    for language in languages_to_run(FOLDERS.index(folder) + 1, there, TODAY, os.environ.get("LESSON_LANGUAGE")):
        with capsys.disabled():
            print(f"\n{folder.name}: executing {lessons.source_of(folder, language).name}")
        run = lessons.execute(lessons.read_source(folder, language), folder, start=ROOT)
        built = lessons.read_notebook(folder, language)
        assert [pictures(cell) for cell in run.cells] == [pictures(cell) for cell in built.cells]
        assert "missing from font" not in "".join(lessons.tidy(run))


def test_languages_take_turns():
    both = ["en", "zh"]
    assert [languages_to_run(1, both, day, None) for day in (1, 2, 366)] == [["zh"], ["en"], ["en"]]
    assert [languages_to_run(2, both, day, None) for day in (1, 2, 366)] == [["en"], ["zh"], ["zh"]]
    assert [languages_to_run(1, both, 1, wanted) for wanted in ("en", "zh", "both")] == [["en"], ["zh"], both]
    assert languages_to_run(1, ["en"], 1, None) == ["en"]
    with pytest.raises(UserError, match="must be en, zh or both"):
        languages_to_run(1, both, 1, "fr")


# ---------------------------------------------------------------------------------------------- opened from any folder


def code_of(folder, language="en") -> list[str]:
    return [cell.source for cell in lessons.read_source(folder, language).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("start", [".", "01_ddpm_mnist", "05_finetune_diffusers", "tests", "elsewhere"])
@pytest.mark.parametrize(("folder", "language"), [pair for pair in PAIRS if pair[0] in LESSONS], ids=name_of)
def test_a_lesson_finds_its_files_wherever_its_kernel_starts(folder, language, start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path if start == "elsewhere" else ROOT / start)
    monkeypatch.setattr(sys, "path", ["", str(ROOT), *(entry for entry in sys.path if Path(entry).parent != ROOT)])
    viz.label_language("en")  # loads torch and matplotlib, which a process cannot load a second time
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    first, *others = code_of(folder, language)
    names = {}
    exec(first, names)
    assert names["CHAPTER"] == folder
    imported = {
        node.module if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(ast.parse("\n".join(others)))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    tops = {name.split(".")[0] for name in imported}
    files = {name: (folder / f"{name}.py", folder / name / "__init__.py") for name in tops}
    own = {
        name: next(file for file in some if file.exists())
        for name, some in files.items()
        if any(file.exists() for file in some)
    }
    assert own and {name: Path(PathFinder.find_spec(name).origin) for name in own} == own


@pytest.mark.parametrize("folder", LESSONS, ids=name_of)
def test_a_lesson_names_no_path_that_depends_on_where_its_kernel_starts(folder):
    calls = [node for node in ast.walk(ast.parse("\n".join(code_of(folder)))) if isinstance(node, ast.Call)]
    fixed = [
        ast.unparse(call)
        for call in calls
        if getattr(call.func, "id", "") in ("Path", "open") and isinstance(call.args[0], ast.Constant)
    ]
    assert fixed == []


def test_files_of_another_chapter_are_forgotten(tmp_path, monkeypatch):
    for name in ("01_one", "02_two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "namesake_of_a_test.py").write_text(f"chapter = {name!r}", encoding="utf-8")
    monkeypatch.setattr(chapter, "COURSE", tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("01_one", "02_two", "01_one"):
        assert chapter.open_chapter(name) == tmp_path / name
        assert importlib.import_module("namesake_of_a_test").chapter == name
        assert [entry for entry in sys.path if str(tmp_path) in entry] == [str(tmp_path / name)]
    del sys.modules["namesake_of_a_test"]
    with pytest.raises(UserError, match="no chapter '03'; choose one of 01_one, 02_two"):
        chapter.open_chapter("03")


# ------------------------------------------------------------------------------------------------------- the machinery


def test_build_keeps_results_and_nothing_of_the_machine(tmp_path, capsys):
    path = lessons.build(lesson(tmp_path))
    lessons.check(tmp_path)
    words, number, plot = nbformat.read(path, as_version=4).cells
    assert words.cell_type == "markdown" and words.source == "Words"
    assert [output.data["text/plain"] for output in number.outputs] == ["42"]  # and not what went to stderr
    assert "hello" in capsys.readouterr().err
    assert pictures(plot) == 1
    assert not any(cell.metadata for cell in (words, number, plot))
    first = path.read_bytes()
    assert lessons.build(tmp_path).read_bytes() == first, "the same lesson gives the same file"


@pytest.mark.parametrize(
    "change",
    [
        lambda source: source.replace("6 * 7", "6 * 8"),
        lambda source: source.replace("# Words", "# Other words"),
        lambda source: source + "\n# %%\nprint(1)\n",
        lambda source: source.replace("# %% [markdown]\n# Words\n\n", ""),
        lambda source: source.replace("# %% [markdown]\n# Words", "# %%\n# Words"),
    ],
)
def test_check_finds_every_drift(tmp_path, tiny_build, change):
    shutil.copy(tiny_build / "lesson.ipynb", tmp_path)
    lesson(tmp_path)
    lessons.check(tmp_path)
    lesson(tmp_path, change(TINY))
    with pytest.raises(UserError, match="common.grade.notebook build"):
        lessons.check(tmp_path)


@pytest.fixture(scope="module")
def tiny_build(tmp_path_factory):
    folder = lesson(tmp_path_factory.mktemp("tiny"))
    lessons.build(folder)
    return folder


def test_words_change_without_a_run(tmp_path, tiny_build):
    shutil.copy(tiny_build / "lesson.ipynb", tmp_path)
    old = lessons.read_notebook(tmp_path)
    lesson(
        tmp_path,
        TINY.replace("# Words", "# Other words").replace("6 * 7", "# the answer\n6*7")
        + "\n# %% [markdown]\n# The end\n",
    )
    with pytest.raises(UserError, match="differ"):
        lessons.check(tmp_path)
    lessons.sync(tmp_path)
    lessons.check(tmp_path)
    new = lessons.read_notebook(tmp_path)
    assert [cell.outputs for cell in new.cells[1:3]] == [cell.outputs for cell in old.cells[1:]] and new.cells[
        1
    ].outputs
    for source in (
        TINY.replace("6 * 7", "6 * 8"),
        TINY + "\n# %%\nprint(1)\n",
        TINY[: TINY.index("# %%\nimport matplotlib")],
    ):
        before = (tmp_path / "lesson.ipynb").read_bytes()
        with pytest.raises(UserError, match="common.grade.notebook build"):
            lessons.sync(lesson(tmp_path, source))
        assert (tmp_path / "lesson.ipynb").read_bytes() == before


def test_docstrings_are_words():
    code = 'def f():\n    """{}"""\n    return {}'
    assert lessons.meaning(code.format("one", 1)) == lessons.meaning(code.format("two", 1))
    assert lessons.meaning(code.format("one", 1)) != lessons.meaning(code.format("one", 2))


def test_a_command_names_the_lesson():
    assert lessons.command(ROOT / "01_ddpm_mnist", "zh") == "python -m common.grade.notebook build 01 --lang zh"
    assert lessons.command(ROOT / "docs" / "debugging").endswith(" build docs/debugging")


def test_both_languages_have_their_own_files(tmp_path, tiny_build):
    shutil.copy(tiny_build / "lesson.ipynb", tmp_path)
    english = (tmp_path / "lesson.ipynb").read_bytes()
    lesson(tmp_path)
    with pytest.raises(UserError, match="lesson.zh.py is missing"):
        lessons.check(tmp_path, "zh")
    chinese = TINY[: TINY.index("# %%\nimport matplotlib")].replace("Words", "文字")
    (tmp_path / "lesson.zh.py").write_text(chinese, encoding="utf-8")
    with pytest.raises(UserError, match=r"lesson.zh.ipynb is missing; make it with: .* build \S+ --lang zh"):
        lessons.check(tmp_path, "zh")
    assert lessons.build(tmp_path, "zh").name == "lesson.zh.ipynb"
    lessons.check(tmp_path, "zh")
    lessons.check(tmp_path)
    assert (tmp_path / "lesson.ipynb").read_bytes() == english
    (tmp_path / "lesson.zh.py").write_text(chinese.replace("6 * 7", "6 * 8"), encoding="utf-8")
    with pytest.raises(UserError, match="the code of lesson.zh.py has changed"):
        lessons.sync(tmp_path, "zh")
    (tmp_path / "lesson.zh.py").write_text(chinese.replace("文字", "话"), encoding="utf-8")
    with pytest.raises(UserError, match="lesson.zh.py and lesson.zh.ipynb differ"):
        lessons.check(tmp_path, "zh")
    lessons.check(lessons.sync(tmp_path, "zh").parent, "zh")


def test_check_refuses_a_notebook_that_was_not_run(tmp_path):
    nbformat.write(lessons.read_source(lesson(tmp_path)), tmp_path / "lesson.ipynb")
    with pytest.raises(UserError, match="not executed"):
        lessons.check(tmp_path)


@pytest.mark.parametrize("content", [None, "", "{}", "no JSON"])
def test_check_refuses_what_is_no_notebook(tmp_path, content):
    lesson(tmp_path)
    if content is not None:
        (tmp_path / "lesson.ipynb").write_text(content)
    with pytest.raises(UserError, match="lesson.ipynb is (missing|no notebook)"):
        lessons.check(tmp_path)


def test_a_failing_cell_is_shown_and_nothing_is_written(tmp_path):
    with pytest.raises(UserError, match=r"ZeroDivisionError(.|\n)*a = 1 / 0"):
        lessons.build(lesson(tmp_path, TINY + "\n# %%\na = 1 / 0\n"))
    assert not (tmp_path / "lesson.ipynb").exists()


def test_a_cell_that_hangs_is_ended(tmp_path):
    source = "# %%\nimport time\ntime.sleep(60)\n"
    with pytest.raises(UserError, match="longer than 1 s"):
        lessons.execute(lessons.read_source(lesson(tmp_path, source)), tmp_path, seconds=1)


def test_a_cell_that_ends_its_process(tmp_path):
    with pytest.raises(UserError, match="the Python process that ran the cells of .*lesson.py ended"):
        lessons.execute(lessons.read_source(lesson(tmp_path, "# %%\nimport os\nos._exit(1)\n")), tmp_path)


def test_a_printed_path_is_refused(tmp_path):
    source = "# %%\nfrom pathlib import Path\nprint(Path.home() / 'secret.png')\n"
    with pytest.raises(UserError, match="secret.png"):
        lessons.build(lesson(tmp_path, source))


def test_pictures_become_lighter_and_stay_the_same():
    colours = 80 * np.random.default_rng(0).integers(0, 4, (64, 64, 3), np.uint8)  # 64 different ones
    picture = Image.fromarray(colours).convert("RGBA")
    kind, light = lessons.lighter(png(picture))
    assert kind == "image/png" and len(light) < 0.8 * len(png(picture))
    assert Image.open(io.BytesIO(base64.b64decode(light))).convert("RGBA").tobytes() == picture.tobytes()
    moving = png(picture.convert("L"), "GIF")  # not a PNG, whatever it is called
    assert lessons.lighter(moving) == ("image/png", moving)


def test_large_grids_of_images_become_jpeg():
    """Where that saves much: shading with noise in it, as in pictures of food."""
    y, x = np.mgrid[:256, :256]
    shading = 127 + 100 * np.sin(np.stack([x + y, x - y, 2 * x], 2) / 40)
    picture = Image.fromarray(np.uint8(shading + np.random.default_rng(0).normal(0, 4, shading.shape)))
    kind, light = lessons.lighter(png(picture))
    assert kind == "image/jpeg" and len(light) < 0.5 * len(png(picture))
    again = np.asarray(Image.open(io.BytesIO(base64.b64decode(light)))) - np.asarray(picture, np.float32)
    assert np.abs(again).mean() < 6


def test_chapters_by_number_or_name():
    assert {chapter.chapter_folder(name, "lesson.py") for name in ("1", "01", "01_ddpm_mnist")} == {
        ROOT / "01_ddpm_mnist"
    }
    with pytest.raises(UserError, match="no chapter '99'"):
        chapter.chapter_folder("99", "lesson.py")
