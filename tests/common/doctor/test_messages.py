"""What the doctor says of a training run, in Chinese."""

import re

import pytest

from common.grade.marking.messages import SLOT, plain, read, translator
from helpers.messages import english_left, is_sentence, templates
from helpers.programs import ROOT

DOCTOR = ROOT / "common" / "doctor"
RUNS = [path for path in sorted((DOCTOR / "runs").glob("*.py")) if path.name != "run_files.py"]  # that one refuses
OTHERS = [DOCTOR / "consultation.py", ROOT / "common" / "training" / "optimization.py"]
PAIRS = read(DOCTOR / "messages.zh.toml")
ELSEWHERE = {  # a part of another message
    "step {1}: the loss is {2} and the gradient's norm {3}",
    "{1} and {2}",
}


def test_no_sentence_is_missing():
    assert sorted({each for each in templates(*RUNS) if is_sentence(each)} - PAIRS.keys()) == []


def test_no_sentence_is_stale():
    assert sorted({plain(each) for each in PAIRS} - templates(*RUNS, *OTHERS) - ELSEWHERE) == []


@pytest.mark.parametrize("english", PAIRS)
def test_a_sentence_is_chinese(english):
    chinese = PAIRS[english]
    assert sorted(SLOT.findall(chinese)) == sorted(SLOT.findall(english))
    assert re.search(r"[\u4e00-\u9fff（，：]", chinese) and english_left(chinese) == []


@pytest.mark.parametrize(
    ("english", "chinese"),
    [
        ("0 to 1: no pixel is darker than mid-grey", "0 到 1：没有比中灰更暗的像素"),
        ("0 to 255, beyond [-1, 1]", "0 到 255，超出 [-1, 1]"),
        ("a tenth of --lr (it was 0.4)", "把 --lr 减到十分之一（原来是 0.4）"),
        ("7 of 10 never had a gradient: no image has this label", "共 10 类，第 7 类从未有过梯度：没有图像带这个标签"),
        (
            "tinted: blue differs from the training images by -0.61, the others by +0.03 and +0.03",
            "偏色：蓝色与训练图像相差 -0.61，其余相差 +0.03 和 +0.03",
        ),
        (
            "with those of other images the loss is 1.000 times as large: the network does not use them",
            "换成其他图像的，损失变为 1.000 倍：网络没有用到它们",
        ),
        (
            "the loss on other images is 9.12 times that on training images (8 of them)",
            "其他图像上的损失是训练图像上的 9.12 倍（共 8 张）",
        ),
        (
            "check that labels belong to their images; if they do, train longer",
            "检查标签与图像是否对应；如果对应，就训练更久",
        ),
        ("step 1: the loss is nan and the gradient's norm nan", "第 1 步：损失是 nan，梯度的范数是 nan"),
    ],
)
def test_the_lesson_shows_it_in_chinese(english, chinese):
    assert translator("zh", DOCTOR, few=0)(english) == chinese
