"""What the doctor says, in Chinese."""

import os
import re
import subprocess
import sys

import pytest

from common.doctor.consultation import consult
from common.doctor.finding import fine, print_findings, wrong
from common.doctor.machine import compute, installation, network, storage
from common.grade.marking.messages import SLOT, read, translator
from helpers.messages import english_left, is_sentence, read_all, templates
from helpers.programs import ROOT

DOCTOR = ROOT / "common" / "doctor"
SPOKEN = sorted(DOCTOR.rglob("*.py"))
OTHERS = [ROOT / "common" / name for name in ("training/optimization.py", "cli.py", "errors.py", "io/hub.py")]
CATALOGUE = DOCTOR / "messages.zh.toml"
PAIRS = read(CATALOGUE)
ELSEWHERE = {  # a part of another message
    "step {1}: the loss is {2} and the gradient's norm {3}",
    "{1} and {2}",
    "{1} and {2} more",
    "did not answer within {1} s{2}",
    "torch {1} and torchvision {2} were not built for each other",
    "{1} has no package {2}",
}
say = translator("zh", DOCTOR, few=0)


def test_no_sentence_is_missing():
    sentences = {each for each in templates(*SPOKEN) if is_sentence(each)}
    assert len(sentences) > 100 and sorted(sentences - set(read_all(CATALOGUE))) == []


def test_no_sentence_is_stale():
    assert sorted(set(read_all(CATALOGUE)) - templates(*SPOKEN, *OTHERS) - ELSEWHERE) == []


@pytest.mark.parametrize("english", PAIRS)
def test_a_sentence_is_chinese(english):
    chinese = PAIRS[english]
    assert sorted(number for number, _ in SLOT.findall(chinese)) == sorted(
        number for number, _ in SLOT.findall(english)
    )
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
    assert say(english) == chinese


# --------------------------------------------------------------------------------------------- what the command prints


def machines(folder):
    """A finding of each kind that a machine can give, good and bad."""
    yield installation.python((3, 10, 4))
    yield installation.kernel_of("/somewhere/else/bin/python")
    yield from map(storage.memory, (2**29, 2 * 2**30, 2**34))
    yield storage.disk(folder)
    yield storage.writable(folder)
    yield storage.data(folder / "data")
    yield storage.data(folder)
    yield from (compute.threads(*each) for each in ((9, 4, 8, 0), (4, 4, 8, 60), (1, 8, 8, 0), (4, 4, 8, 5)))
    yield from map(compute.waiting, ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "passive"}))
    yield from (compute.expectation(*each) for each in ((100, "cpu"), (2000, "cpu"), (10, "cuda")))
    yield from compute.findings("cuda:77")
    yield from compute.findings("no-such-device")
    yield installation.packages(folder / "pyproject.toml")
    yield installation.font(folder / "font.otf")
    yield wrong("packages", f"missing: {installation.listed([str(k) for k in range(11)])}", installation.INSTALL)


def test_a_machine_is_described_in_chinese(tmp_path):
    for finding in machines(tmp_path):
        assert re.search(r"[\u4e00-\u9fff]", say(finding.seen)) or finding.seen == str(tmp_path), finding
        for text in filter(None, (finding.seen, finding.cure)):
            own = re.sub(r"（[^（）]*）", "", say(text))  # without the reason that another library gives
            assert english_left(own) == [] or " -m " in text, own


@pytest.mark.parametrize(
    ("reason", "chinese"),
    [
        ("did not answer within 3 s", "镜像 https://hf-mirror.com 在 3 秒内没有应答"),
        ("did not answer (Connection refused)", "镜像 https://hf-mirror.com 没有应答 (Connection refused)"),
        (
            "did not answer within 3 s through the proxy http://proxy:3128",
            "镜像 https://hf-mirror.com 在 3 秒内没有应答（经由代理 http://proxy:3128）",
        ),
    ],
)
def test_a_hub_that_does_not_answer_in_chinese(reason, chinese, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://hf-mirror.com")
    monkeypatch.setattr(network, "offline", lambda: False)
    monkeypatch.setattr(network, "unanswered", lambda _: reason)
    assert say(network.hub().seen) == chinese


def test_a_folder_keeps_its_name(tmp_path, monkeypatch):
    """A folder may be called like a subject."""
    monkeypatch.chdir(tmp_path)
    assert str(tmp_path / "data") in say(storage.data(storage.Path("data")).seen)


def test_columns_stand_below_each_other_in_chinese(capsys):
    assert print_findings([fine("memory", "18.0 GiB free"), wrong("hub", "1 to 2", "type this")], say) == 1
    assert capsys.readouterr().out.splitlines() == [
        "正常      内存                  可用 18.0 GiB",
        "有问题    模型库（hub）         1 到 2",
        "                                -> type this",
        "有 1 处要解决：见箭头",
    ]


def test_the_list_of_faults_is_chinese(tmp_path, capsys):
    consult(None, "list", None, tmp_path, "cpu", say)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 12 and all(
        re.search(r"[\u4e00-\u9fff]", line) and not english_left(line[18:]) for line in lines
    )


@pytest.mark.parametrize(("flags", "locale"), [(["--lang", "zh"], "C.UTF-8"), ([], "zh_CN.UTF-8")])
def test_the_command_chooses_the_language(flags, locale, tmp_path):
    """By the flag, or else by the locale; what it refuses is translated, too."""
    command = [sys.executable, "-m", "common.doctor", *flags]
    environment = os.environ | {"LC_ALL": locale, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    options = {"env": environment, "cwd": tmp_path, "capture_output": True, "encoding": "utf-8"}
    assert "学习率大了一百倍" in subprocess.run([*command, "--practice", "list"], **options).stdout
    refused = subprocess.run([*command, "--run", "nothing"], **options)
    assert refused.returncode == 2 and "没有文件夹 nothing" in refused.stderr
