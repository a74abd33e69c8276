"""Finds the folders of chapters, and makes a chapter's files importable in its lesson.

JupyterLab starts a notebook's kernel in the notebook's folder; papermill, `%run` and VS Code (as it can be configured)
start it elsewhere. So a lesson begins with

    from common.grade.chapter import open_chapter
    CHAPTER = open_chapter("01_ddpm_mnist")

In the Chinese lesson the name is "01_ddpm_mnist 中文": the words in the course's own figures are then Chinese.

Importing `common` first also sets the environment variables that torch reads when it is loaded.
"""

import sys
from pathlib import Path

from common.errors import UserError

COURSE = Path(__file__).resolve().parents[2]


def chapter_folder(chapter: str, part: str) -> Path:
    """The folder of a chapter that has this file or folder. chapter: '1', '01' or '01_ddpm_mnist'"""
    folders = [folder for folder in sorted(COURSE.glob("[0-9][0-9]_*")) if (folder / part).exists()]
    for folder in folders:
        if chapter in (folder.name, folder.name[:2], folder.name[:2].lstrip("0")):
            return folder
    numbers = ", ".join(folder.name[:2] for folder in folders)
    raise UserError(f"there is no chapter '{chapter}' with {part}; choose one of {numbers}")


def exercises_of(chapter: str) -> Path:
    """The exercises folder of a chapter: '1', '01' or '01_ddpm_mnist'."""
    return chapter_folder(chapter, "exercises") / "exercises"


def open_chapter(name: str) -> Path:
    """Make the chapter's files importable by their names, and return the chapter's folder.

    name  of the folder; with " 中文" behind it, figures have Chinese labels

    Chapters use the same names for different files (evaluate.py, sample.py), so in a kernel in which another chapter
    was opened before, the files of that chapter are forgotten.
    """
    chapters = {folder.name: folder for folder in COURSE.glob("[0-9][0-9]_*") if folder.is_dir()}
    name, _, language = name.partition(" ")
    if language not in ("", "中文"):
        raise UserError(f"a lesson's language is none (English) or 中文, not '{language}'")
    if name not in chapters:
        raise UserError(f"{COURSE} has no chapter '{name}'; choose one of {', '.join(sorted(chapters))}")
    others = {folder for folder in chapters.values() if folder.name != name}
    for module, loaded in list(sys.modules.items()):
        if (file := getattr(loaded, "__file__", None)) and Path(file).resolve().parent in others:
            del sys.modules[module]
    kept = [entry for entry in sys.path if not entry or Path(entry).resolve() not in chapters.values()]
    sys.path[:] = [str(chapters[name]), *kept]
    if (
        language or "common.viz" in sys.modules
    ):  # it loads torch, which an English lesson's first cell need not wait for
        from common import viz

        viz.label_language("zh" if language else "en")
    return chapters[name]
