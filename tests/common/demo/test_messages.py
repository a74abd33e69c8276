"""The messages of the course on the page: Chinese in a Chinese sentence, or named as English."""

import ast
import html
import re

import pytest

from common.demo.page.texts import CATALOGUE, TEXTS, user_message
from common.demo.page.widgets import message
from common.errors import UserError
from helpers.messages import SLOT, is_sentence, plain, tree, visit
from helpers.programs import ROOT

SPOKEN = (  # modules whose messages a visitor can see; the others speak of flags and of models that one brings along
    "common/demo/pictures/*.py",
    "common/diffusion/guidance.py",
    "common/diffusion/sampler*.py",
    "common/diffusion/schedules.py",
    "common/models/pipeline.py",
    "common/models/model_folder.py",
    "common/io/state_dict.py",
    "common/io/files.py",
    "common/io/weight_files.py",
    "common/evaluate/classifiers.py",
    "06_inpaint_gif/inpaint_gif/clip/dish_names.py",
    "06_inpaint_gif/inpaint_gif/animation/canvas.py",
    "06_inpaint_gif/inpaint_gif/inpainting/repaint.py",
)
PARTS = {  # what fills a slot: reasons of the operating system, and a part that is made beforehand
    "; what was saved before is untouched",
    "No space left on device",
    "Permission denied",
    "No such file or directory",
    "Is a directory",
    "Too many open files",
    "Read-only file system",
}
CHINESE = re.compile("[\u3400-\u9fff]")


def spoken() -> set[str]:
    """The templates of all messages that a visitor can see, and of their parts."""
    found: set[str] = set()
    for pattern in SPOKEN:
        paths = list(ROOT.glob(pattern))
        assert paths, pattern
        for node in (node for path in paths for node in ast.walk(tree(path))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "UserError":
                for argument in node.args:
                    visit(argument, found)
    for node in ast.walk(tree(ROOT / "common" / "errors.py")):
        if isinstance(node, ast.FunctionDef) and node.name in ("sentence", "enough_memory"):
            for inner in ast.walk(node):
                if isinstance(inner, ast.Return) and inner.value:
                    visit(inner.value, found)
                if isinstance(inner, ast.Call) and getattr(inner.func, "id", "") == "UserError":
                    visit(inner.args[0], found)
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "ADVICE":
            visit(node.value, found)
    return {plain(each) for each in found}


def in_language(shown: str, language: str) -> str:
    found = re.search(rf'<span class="{language}">(.*?)</span>', shown)
    assert found
    return html.unescape(found[1])


def test_no_message_is_missing():
    keys = spoken()
    assert len(keys) > 50  # the test looks at something
    assert sorted({each for each in keys if is_sentence(each)} - CATALOGUE.pairs.keys()) == []


def test_no_message_is_left_over():
    assert sorted(CATALOGUE.pairs.keys() - spoken() - PARTS) == []


@pytest.mark.parametrize("english", CATALOGUE.pairs)
def test_a_translation_is_chinese_and_has_the_same_parts(english):
    chinese = CATALOGUE.pairs[english]
    assert CHINESE.search(chinese) or english == "; {1}"
    assert sorted(number for number, _ in SLOT.findall(english)) == sorted(
        number for number, _ in SLOT.findall(chinese)
    )


@pytest.mark.parametrize(
    "problem, expected",
    [
        (UserError("weights.safetensors is missing"), "没有成功：缺少 weights.safetensors。"),
        (MemoryError(), "没有成功：内存不足（MemoryError）；请减小步数或图片数。"),
        (
            PermissionError(13, "Permission denied", "/x"),
            "没有成功：无法打开或写入 /x（没有权限）；请修改权限，或换一个文件。",
        ),
        (
            OSError(28, "No space left on device"),
            "没有成功：无法打开或写入文件（磁盘已满）；请清理磁盘，或换一个位置。",
        ),
        (
            UserError("a sampler on this schedule takes 1 to 1000 steps, not 2000"),
            "没有成功：在这个噪声调度上，采样器可取 1 到 1000 步，不能是 2000。",
        ),
    ],
)
def test_a_problem_is_told_in_chinese(problem, expected):
    shown = message(problem)
    assert in_language(shown, "zh") == expected
    assert not CHINESE.search(in_language(shown, "en"))


def test_an_unknown_message_is_named_as_english():
    shown = user_message(UserError("the moon is <full>."))
    assert in_language(shown, "en") == "This did not work: the moon is <full>."
    assert in_language(shown, "zh") == TEXTS["error.foreign"][1].format(problem="the moon is <full>")
    assert "英文" in TEXTS["error.foreign"][1] and "&lt;full&gt;" in shown
