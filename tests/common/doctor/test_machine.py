"""`python -m common.doctor` on machines that lack something. The network is a closed port."""

import socket
import sys
from collections import namedtuple

import pytest

from common.doctor import consultation
from common.doctor.finding import FINE, NOTE, WRONG, fine, note, print_findings, skipped, wrong
from common.doctor.machine import compute, installation, network, storage
from common.errors import UserError
from common.viz import FONT, FONT_NAME

GIB = 2**30


def test_the_exit_code_counts_what_is_wrong_alone(capsys):
    assert print_findings([fine("a", "here"), note("b", "slow", "wait"), skipped("c", "no file")]) == 0
    assert print_findings([fine("a", "here"), wrong("b", "gone", "type this")]) == 1
    out = capsys.readouterr().out
    assert "nothing is wrong" in out and "1 thing to mend" in out and "-> type this" in out


def test_every_wrong_finding_says_what_to_do():
    assert installation.python((3, 10, 4)).status == WRONG
    assert "3.11" in installation.python((3, 10, 4)).cure
    assert installation.python((3, 11, 0)).status == FINE


def test_a_missing_package_is_named(tmp_path):
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\ndependencies = ["torch>=2", "no-such-package[extra]>=1; python_version > \'3\'"]\n')
    found = installation.packages(project)
    assert found.status == WRONG and "no-such-package" in found.seen and "torch" not in found.seen
    project.write_text('[project]\ndependencies = ["torch", "no-such-package; python_version < \'3\'"]\n')
    assert installation.packages(project).status == FINE, "a package of another Python is not missed"


def test_the_packages_of_this_course_are_all_found():
    assert installation.packages(installation.ROOT / "pyproject.toml").status == FINE


@pytest.mark.parametrize("name", ["cn_clip", "gradio"])
def test_a_package_without_dependencies_that_is_missing(name, tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["torch"]\n')
    monkeypatch.setattr(installation, "installed", lambda each: each != name)
    found = installation.packages(tmp_path / "pyproject.toml")
    assert found.status == WRONG and found.seen == f"missing: {name}" and "requirements-no-deps.txt" in found.cure


def test_a_torchvision_for_another_torch(monkeypatch):
    versions = {"torch": "2.12.1+cpu", "torchvision": "0.26.0"}
    monkeypatch.setattr("importlib.metadata.version", versions.__getitem__)
    found = installation.torch_pair()
    assert found.status == WRONG and "2.12.1" in found.seen and "requirements.txt" in found.cure
    versions["torchvision"] = "0.27.0"
    assert installation.torch_pair().status == FINE


@pytest.mark.parametrize(
    "python, status", [(sys.executable, FINE), ("python", FINE), ("/somewhere/else/bin/python", WRONG)]
)
def test_a_kernel_of_another_python(python, status):
    found = installation.kernel_of(python)
    assert found.status == status
    assert status == FINE or "ipykernel install" in found.cure


def test_the_chinese_font_comes_with_the_course(monkeypatch, tmp_path):
    """A system without a Chinese font lacks nothing; a broken or missing file of the course does."""
    from matplotlib import font_manager

    Font = namedtuple("Font", "name")
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [Font("DejaVu Sans")])
    found = installation.font()
    assert installation.FONT == FONT and found.status == FINE and FONT_NAME in found.seen
    missing, broken = tmp_path / "missing.otf", tmp_path / "broken.otf"
    broken.write_bytes(FONT.read_bytes()[:1000])
    for path in (missing, broken):
        found = installation.font(path)
        assert found.status == WRONG and path.name in found.seen and "common/fonts" in found.cure


@pytest.mark.parametrize("free, status", [(0.5, WRONG), (2, NOTE), (16, FINE)])
def test_memory(free, status):
    assert storage.memory(free * GIB).status == status


@pytest.mark.parametrize("free, status", [(0.5, WRONG), (3, NOTE), (100, FINE)])
def test_disk(free, status, monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.disk_usage", lambda _: namedtuple("Usage", "total used free")(0, 0, free * GIB))
    assert storage.disk(tmp_path).status == status


def test_data_folders(tmp_path):
    assert "embedded" in storage.data(tmp_path / "none").seen
    (tmp_path / "pokemon").mkdir()
    assert "pokemon" in storage.data(tmp_path).seen


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    assert storage.writable(tmp_path).status == FINE

    def refuse(folder):
        raise UserError(f"cannot write to {folder}")

    monkeypatch.setattr(storage, "writable_folder", refuse)
    assert storage.writable(tmp_path).status == WRONG


def test_a_hub_that_does_not_answer(monkeypatch):
    with socket.socket() as port:  # bound, but nobody listens: the connection is refused
        port.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{port.getsockname()[1]}"
        monkeypatch.setattr(network, "offline", lambda: False)
        monkeypatch.setenv("HF_ENDPOINT", address)
        found = network.hub()
        assert found.status == WRONG and "mirror" in found.seen and "HF_ENDPOINT" in found.cure
        monkeypatch.setattr(network, "PUBLIC", address)  # nobody named a mirror: no reason to worry
        found = network.hub()
        assert found.status == NOTE and "works without it" in found.seen


def test_a_hub_that_is_not_asked_or_has_no_address(monkeypatch):
    monkeypatch.setattr(network, "offline", lambda: True)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert network.hub().status == NOTE
    monkeypatch.setenv("HF_ENDPOINT", "not an address")
    assert network.hub().status == WRONG


@pytest.mark.parametrize(
    "used, cores, logical, busy, status",
    [(9, 4, 8, 0, WRONG), (4, 4, 8, 60, NOTE), (1, 8, 8, 0, NOTE), (4, 4, 8, 5, FINE), (1, 2, 2, 90, FINE)],
)
def test_threads(used, cores, logical, busy, status):
    assert compute.threads(used, cores, logical, busy).status == status


def test_busy_waiting():
    assert compute.waiting({"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}).status == FINE
    assert compute.waiting({"OMP_WAIT_POLICY": "ACTIVE"}).status == WRONG
    assert compute.waiting({"GOMP_SPINCOUNT": "30000000000"}).status == WRONG


def test_the_device_and_what_to_expect():
    assert [each.status for each in compute.findings("cuda:77")] == [WRONG]
    ticks = iter(range(100))
    assert compute.step_seconds("cpu", clock=lambda: next(ticks)) == 1
    documented, slow = compute.expectation(compute.REFERENCE_MS, "cpu"), compute.expectation(1290, "cpu")
    assert documented.status == FINE and "60 (chapter 2)" in documented.seen
    assert slow.status == NOTE and "600 (chapter 2)" in slow.seen


def test_commands_that_contradict_each_other(tmp_path):
    with pytest.raises(UserError, match="not both"):
        consultation.consult(tmp_path, "dark", None, tmp_path, "cpu")
    with pytest.raises(UserError, match="unknown fault"):
        consultation.consult(None, "no such fault", tmp_path / "run", tmp_path, "cpu")
