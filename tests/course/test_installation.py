"""What an installation holds: no direct dependency is missing or unused, every version is pinned,
and settings precede torch.
"""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, requires, version

import pytest

from common.doctor.machine import installation
from helpers.programs import ROOT
from helpers.source import own_files

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SOURCES = own_files("*.py")
OWN = (
    {path.stem for path in SOURCES}
    | {path.parent.name for path in SOURCES}
    | {"bench", "exercises", "mistakes", "tests"}
)
FOR_GRADIO = (
    "audioop-lts", "brotli", "fastapi", "gradio-client", "groovy", "hf-gradio", "orjson", "pydub", "python-multipart", "pytz", "safehttpx",
    "semantic-version", "tomlkit", "uvicorn",
)  # fmt: skip
NO_DEPENDENCIES = {"cn-clip", "gradio"}  # of requirements-no-deps.txt
NOT_IMPORTED = {  # direct dependencies that no file imports, and why they are there
    "ipykernel": "the kernel that executes the lessons",
    "jupyterlab": "opens the lessons",
    "mypy": "checks the types",
    "pytest-xdist": "runs all tests in two processes",
    "ruff": "checks the code",
    "six": "needed by cn_clip, which is installed without its dependencies",
    "tensorboard": "behind torch.utils.tensorboard",
    "timm": "needed by cn_clip",
} | dict.fromkeys(FOR_GRADIO, "needed by gradio, which is installed without its dependencies")
OPTIONAL = {"bitsandbytes"}  # imported where a user asks for it; without it the program says how to install it
TORCH_USERS = {
    "torch",
    "torchvision",
    "accelerate",
    "datasets",
    "diffusers",
    "transformers",
    "compel",
    "peft",
    "torchmetrics",
    "cn_clip",
    "denoising_diffusion_pytorch",
    "safetensors",
}


def normal(name: str) -> str:
    """The name of a distribution as PEP 503 compares it, without version, extras and marker."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s\[=<>~!;]", name.strip(), maxsplit=1)[0]).lower()


DIRECT = {normal(line) for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]}


def lines(name: str) -> list[str]:
    return [line for line in (ROOT / name).read_text().splitlines() if line.strip() and not line.startswith("#")]


def imported(path) -> set[str]:
    """The top-level names of all modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.fixture(scope="module")
def third_party() -> set[str]:
    """The distributions that the project's files import from."""
    names = set().union(*map(imported, SOURCES)) - set(sys.stdlib_module_names) - OWN - OPTIONAL
    distributions = packages_distributions()
    missing = {name for name in names if name not in distributions}
    assert not missing, f"imported, but not installed: {missing}"
    return {normal(distributions[name][0]) for name in names}


def test_an_installation_holds_every_package_of_common():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT) for path in SOURCES if path.relative_to(ROOT).parts[0] == "common"}
    assert sorted(packages) == sorted(".".join(folder.parts) for folder in folders)


def test_no_direct_dependency_is_missing(third_party):
    assert third_party - DIRECT - NO_DEPENDENCIES == set()


def test_no_direct_dependency_is_unused(third_party):
    assert DIRECT - third_party - NOT_IMPORTED.keys() == set()
    assert NOT_IMPORTED.keys() <= DIRECT - third_party


def test_every_direct_dependency_is_pinned():
    pinned = {normal(line): line for line in lines("constraints.txt")}
    assert pinned.keys() >= DIRECT
    assert all("==" in line and "[" not in line for line in pinned.values()), "a constraint is a name with a version"
    apart = lines("requirements-no-deps.txt")
    assert {normal(name) for name in installation.NO_DEPENDENCIES} == NO_DEPENDENCIES  # what the doctor looks for
    assert {normal(line) for line in apart} == NO_DEPENDENCIES and all("==" in line for line in apart)


def test_cuda_comes_with_torch_alone():
    """With a torch that has no CUDA, no CUDA library is installed: only the constraints name them."""
    assert lines("requirements.txt") == ["-c constraints.txt", "-e .[dev]"]
    assert not [name for name in DIRECT if name.startswith(("nvidia", "cuda", "triton"))]


def test_what_is_installed_without_dependencies_lacks_none():
    """Every package that gradio and cn_clip need is installed."""
    # those with a condition are extras, and one for newer versions of Python
    needed = [normal(line) for name in NO_DEPENDENCIES for line in requires(name) or [] if ";" not in line]
    assert len(needed) > 20
    for name in needed:
        version(name)  # raises PackageNotFoundError


def test_pip_check_reports_two_conflicts_alone():
    """Pins of lmdb and of pillow, explained in requirements-no-deps.txt."""
    ran = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    if "No module named pip" in ran.stderr:
        pytest.skip("this environment has no pip")
    conflicts = [line for line in ran.stdout.splitlines() if "has requirement" in line or "requires" in line]
    known = ("cn-clip 1.6.0 has requirement lmdb==1.3.0", "gradio 6.31.0 has requirement pillow<13.0")
    assert [line for line in conflicts if not line.startswith(known)] == []


# ---------------------------------------------------------------------------------------------- settings before torch


SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "PYTORCH_ENABLE_MPS_FALLBACK")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ["passive", "1000", "1"]),
        ({"GOMP_SPINCOUNT": "5"}, ["passive", "5", "1"]),
        ({"OMP_WAIT_POLICY": "active"}, ["active", "None", "1"]),  # a spin count would overrule the policy
        ({"PYTORCH_ENABLE_MPS_FALLBACK": "0"}, ["passive", "1000", "0"]),
    ],
)
def test_settings_are_made_and_the_users_own_win(given, expected):
    code = f"import common, os; print(*(os.environ.get(name) for name in {SETTINGS}))"
    environment = {key: value for key, value in os.environ.items() if key not in SETTINGS} | given
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == expected


ENTRIES = [
    path
    for path in SOURCES
    if path.parent.name[:2].isdigit() and '\nif __name__ == "__main__":' in path.read_text(encoding="utf-8")
]
# python -m common.x imports common before all else
ENTRIES += [ROOT / "tests" / "conftest.py", *sorted(ROOT.glob("0*/lesson*.py"))]


@pytest.mark.parametrize("path", ENTRIES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_settings_precede_torch(path):
    """OpenMP reads its settings once, when torch is loaded; so what starts a process imports common first."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names = {alias.name.split(".")[0] for alias in node.names} if isinstance(node, ast.Import) else set()
        names |= {node.module.split(".")[0]} if isinstance(node, ast.ImportFrom) and node.module else set()
        if "common" in names:
            return
        assert not names & TORCH_USERS, f"{path.name} imports {names & TORCH_USERS} before common"
