"""The grader in Chinese: the catalogues are complete and Chinese, and a message is translated as far as it is known."""

import json
import os
import re
import subprocess
import sys
import tomllib

import pytest

from common.grade.chapter import COURSE, exercises_of
from common.grade.marking.gradebook import Entry, feedback, line
from common.grade.marking.hand_ins import HandIn, Student
from common.grade.marking.messages import SLOT, Catalogue, language, padded, translator, width
from common.grade.marking.results import Result
from common.grade.stubs import authors, strip
from helpers.messages import catalogue_files, differences, english_left, names_of

CHAPTERS = [path.parent for path in sorted(COURSE.glob("[0-9][0-9]_*/exercises/checks.py"))]
PLACES = [pytest.param(folder, id=folder.parent.name if folder else "common") for folder in (None, *CHAPTERS)]
CHINESE = r"[\u4e00-\u9fff]"


def pairs(folder):
    files = [path for path in catalogue_files(folder).values() if path.is_file()]
    return [pair for path in files for pair in tomllib.loads(path.read_text(encoding="utf-8"))["messages"].items()]


@pytest.mark.parametrize("folder", PLACES)
def test_no_message_is_missing_and_none_is_stale(folder):
    """If this fails: python tests/helpers/messages.py, with a chapter's number, writes what is missing."""
    assert differences(folder) == {name: ([], []) for name in catalogue_files(folder)}


@pytest.mark.parametrize("folder", PLACES)
def test_a_translation_has_the_parts_of_its_original(folder):
    for english, chinese in pairs(folder):
        assert {number for number, _ in SLOT.findall(chinese)} == {number for number, _ in SLOT.findall(english)}


@pytest.mark.parametrize("folder", PLACES)
def test_a_translation_is_chinese(folder):
    """No English words but names and code, and marks as Chinese has them."""
    for english, chinese in pairs(folder):
        assert re.search(r"[\u3000-\u9fff\uff00-\uffef]", chinese), english
        assert english_left(chinese, names_of(folder)) == [], chinese
        assert not re.search(rf"{CHINESE}[,:;?!()]|[,;:?!]{CHINESE}|{CHINESE}\.(?!\w)", chinese), chinese
        assert not re.search(rf"{CHINESE}[A-Za-z0-9]|[A-Za-z0-9]{CHINESE}", chinese), f"a space is missing: {chinese}"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("你把 betas 相乘了；应当相乘的是 (1 - beta)", []),
        ("请用 `x if t > 1 else the rest`、torch.cat 和 U-Net", []),
        ("缺少 the square root", ["the square"]),
        ("最大的 difference is 3", ["difference is"]),
        ("x and 一个", ["and"]),
    ],
)
def test_english_is_found(text, left):
    assert english_left(text) == left


# --------------------------------------------------------------------------------------------------------- translation

SMALL = Catalogue(
    {
        "{1} values were expected here, {2}": "应有{1}个值：{2}",
        "two": "两",
        "x and {1}": "x 和 {1}",
        "{1}, not {2}": "{1}，不是{2}",
        "{1} with {2}: {3}": "{1}：{2!}：{3!}",
        "your code stopped in {1}": "代码在{1}停止",
        "line {1}": "第 {1} 行",
        "level {1} of {2} is wrong{3}": "{2} 级中第 {1} 级不对{3}",
        "; look for a clamp or a rounding": "；看看有没有截断或取整",
        "not {1}": "不是 {1}",
        "the network cannot be copied here": "这里不能复制网络",
        "to {1}": "传到{1}",
        "the mean": "均值",
        "argument {1} of {2}": "{2} 的 {1}参数",
        "number {1}": "第 {1} 个",
        "{1} changes {2}{3} in place": "{1} 改动了 {2}{3}",
        " to {1}": "（变成 {1}）",
    }
)


@pytest.mark.parametrize(
    ("english", "chinese"),
    [
        ("level 3 of 8 is wrong", "8 级中第 3 级不对"),  # another order, and a part that is empty
        ("level 3 of 8 is wrong; look for a clamp or a rounding", "8 级中第 3 级不对；看看有没有截断或取整"),
        ("two values were expected here, x and v, not two", "应有两个值：x 和 v，不是两"),
        (
            "your code stopped in line 3 with ValueError: not two",
            "代码在第 3 行停止：ValueError：not two",
        ),  # one's own
        (
            "your code stopped in line 3 with E: the network cannot be copied here",
            "代码在第 3 行停止：E：这里不能复制网络",
        ),
        ("he came with ValueError: x", "he came with ValueError: x"),  # no message of the grader
        ("this, not that", "this, not that"),
        ("no such  text\n", "no such  text\n"),
        ("", ""),
        ("to the mean", "传到均值"),  # a space only where Chinese meets Latin letters
        ("to x2", "传到 x2"),
        ("argument number 2 of f", "f 的第 2 个参数"),
        ("f changes xs to [1] in place", "f 改动了 xs（变成 [1]）"),
        ("f changes xs in place", "f 改动了 xs"),
    ],
)
def test_a_message_is_translated_as_far_as_it_is_known(english, chinese):
    assert SMALL.translate(english) == chinese


@pytest.mark.parametrize(
    ("given", "environment", "wanted"),
    [
        ("zh", {"LANG": "en_US.UTF-8"}, "zh"),
        ("en", {"LANG": "zh_CN.UTF-8"}, "en"),
        (None, {"LANG": "zh_CN.UTF-8"}, "zh"),
        (None, {"LC_ALL": "C.UTF-8", "LANG": "zh_CN.UTF-8"}, "en"),
        (None, {"LC_ALL": "", "LC_MESSAGES": "zh_TW", "LANG": "en_US"}, "zh"),
        (None, {}, "en"),
    ],
)
def test_the_language_is_that_of_the_locale_unless_it_is_given(given, environment, wanted):
    assert language(given, environment) == wanted


def test_chinese_takes_two_columns():
    assert width("总分 x") == 6 and padded("总分", 6) == "总分  "


# ------------------------------------------------------------------------------------------------------ what is shown


def test_the_report_is_in_the_language_of_the_locale(tmp_path):
    """With the English messages in the file for programs, too."""
    file, out, report = tmp_path / "mine.py", tmp_path / "out.json", tmp_path / "gradescope.json"
    text = (exercises_of("01") / "solutions.py").read_text(encoding="utf-8")
    file.write_text(text.replace("(1 - a).sqrt() * eps\n", "(1 - a) * eps\n"), encoding="utf-8")
    call = [
        sys.executable,
        "-m",
        "common.grade",
        "01",
        "--only",
        "1",
        "2",
        "--submission",
        str(file),
        "--json",
        str(out),
    ]
    done = subprocess.run(
        [*call, "--format", "gradescope", "--out", str(report)],
        capture_output=True, text=True, encoding="utf-8", cwd=COURSE, env=os.environ | {"LC_ALL": "zh_CN.UTF-8"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, passed, failed, total = done.stdout.splitlines()
    assert first.endswith("种子 0") and passed.endswith("通过") and "未通过：" in failed and total.startswith("总分")
    assert english_left(failed.partition("未通过")[2]) == []
    assert width(failed.partition("0/2")[0]) == width(total.partition("1/3")[0])
    message = json.loads(out.read_text(encoding="utf-8"))["exercises"][1]
    assert "did you use 1 - alpha_bar" in message["message"] and message["message_zh"] in failed
    assert [test["output"] for test in json.loads(report.read_text(encoding="utf-8"))["tests"]] == [
        "通过",
        message["message_zh"],
    ]


def test_a_mistake_on_the_command_line_is_named_in_chinese():
    call = [sys.executable, "-m", "common.grade", "01", "--submission", "nowhere.py", "--lang", "zh"]
    done = subprocess.run(call, capture_output=True, text=True, encoding="utf-8", cwd=COURSE)
    assert done.returncode == 2 and "没有文件 nowhere.py；请在 --submission 后面给出" in done.stderr


def test_feedback_of_a_class_is_in_chinese():
    student = Student("ada", "Ada Lovelace")
    results = [Result(1, "alpha_bars", 0, 1, "not solved yet"), Result(2, "add_noise", 2, 2, "")]
    graded = Entry(
        student, "01", HandIn(None), 0, results, possible=3, penalty=0.1, flags=["like the code of bob: 0.99"]
    )
    missing = Entry(student, "02", HandIn(None), 0, status="nothing handed in", possible=42)
    text = feedback([graded, missing], "zh")
    assert "## 第 1 章：3 分中得 1.8 分" in text and "因迟交扣去 10%" in text and "没有提交作业。" in text
    assert "| 1 `alpha_bars` | 0/1 | 还没有作答 |" in text and "| 2 `add_noise` | 2/2 | 通过 |" in text
    assert english_left(text.replace("Ada Lovelace", "")) == []
    assert line(graded, "zh") == "1.8/3，因迟交扣去 10%  请查看：与 bob 的代码相似：0.99"
    assert line(missing, "zh") == "没有提交作业"


def test_pytest_says_in_chinese_what_is_wrong(tmp_path):
    file = tmp_path / "mine.py"
    text = (exercises_of("01") / "solutions.py").read_text(encoding="utf-8")
    file.write_text(text.replace("(1 - a).sqrt() * eps\n", "(1 - a) * eps\n"), encoding="utf-8")
    call = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "-k", "test_2_"]
    for locale, says in (
        ("zh_CN.UTF-8", "是不是该用平方根的地方用了 1 - alpha_bar？"),
        ("C.UTF-8", "did you use 1 - alpha_bar"),
    ):
        done = subprocess.run(
            [*call, "01_ddpm_mnist/exercises"],
            capture_output=True, text=True, encoding="utf-8", cwd=COURSE,
            env=os.environ | {"EXERCISES": str(file), "LC_ALL": locale},
        )  # fmt: skip
        assert done.returncode == 1 and says in done.stdout
        assert ("did you use" in done.stdout) == (locale == "C.UTF-8")


def test_the_panels_are_in_chinese(tmp_path, monkeypatch, capsys):
    """A panel that is drawn, and one that says why it is not."""
    import common.grade.show_exercises as show
    from common import viz

    file, titles = tmp_path / "mine.py", []
    solution = (exercises_of("01") / "solutions.py").read_text(encoding="utf-8")
    first = solution.split("# --- solution\n")[1].split("# --- end")[0].strip()
    file.write_text(re.sub(r'raise NotImplementedError\("exercise 1: .*', lambda _: first, strip(solution)))
    monkeypatch.setattr(
        "common.grade.exercise_panels.save_figure",
        lambda figure, path, **_: titles.extend((axis.get_title(), axis.get_xlabel()) for axis in figure.axes) or path,
    )
    try:
        show.main(show.Args("01", submission=file, out=tmp_path / "a.png", lang="zh"))
    finally:
        viz.label_language("en")
    assert titles[0] == ("1. alpha_bars\n从 1 降到接近 0", "t") and titles[1][0] == "2. add_noise\n还没有作答"
    assert "2. add_noise: 还没有作答" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("chapter", "english", "chinese"),
    [
        ("03", "always 0", "总是 0"),
        ("05", "5 of 50", "50 步中的 5 步"),
        ("05", "0 and 0.5", "0 和 0.5"),
        ("05", "weight, 4 x 4", "权重、4 x 4"),
        ("05", "s = 0.29: 14 of 50", "s = 0.29：14 步"),
        ("06", "w, 8 zero tokens", "w，8 个零词元"),
    ],
)
def test_short_labels_of_panels_are_in_chinese(chapter, english, chinese):
    """Too short for a message, in which they could be a learner's own words."""
    assert translator("zh", exercises_of(chapter), few=0)(english) == chinese


@pytest.mark.parametrize("folder", PLACES[1:])
def test_hints_are_in_chinese(folder):
    say = translator("zh", folder)
    for steps in authors(folder).get("HINTS", {}).values():
        for step in steps[:2]:
            assert say(step) != step and english_left(say(step), names_of(folder)) == []
