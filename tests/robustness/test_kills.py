"""A sample of tests/robustness/kills: every training program, killed at some of its file operations,
ends as if it had been left alone.

The whole matrix is `python tests/robustness/kills/run.py`.
"""

import json
import sys

import pytest

from helpers.programs import run_program

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the program forks, and reads names of open files in /proc"
)
NAMES = (
    "01_train_start",
    "02_train",
    "04_train",
    "04_vae_decoder",
    "05_lora",
    "05_unconditional",
    "05_package",
    "06_clip_start",
    "06_text2dish",
    "06_inpaint",
    "06_controlnet",
)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict:
    path = tmp_path_factory.mktemp("kills") / "results.json"
    done = run_program(
        "tests/robustness/kills/run.py", "--sample", 2, "--programs", *NAMES, "--json", path, timeout=3600
    )
    assert path.exists(), done.stdout + done.stderr
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", NAMES)
def test_killed_and_resumed_is_as_left_alone(name, results):
    assert results[name]["killed"] == 2 and results[name]["operations"] > 20
    assert results[name]["faults"] == {}
