"""Python, the packages of the course, and the tools beside them."""

import importlib
import importlib.metadata
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

from common.cli import TORCHVISION_FOR, check_versions
from common.doctor.finding import Finding, fine, note, wrong
from common.errors import UserError, explain, listed

ROOT = Path(__file__).parents[3]
FONT = Path(__file__).parents[2] / "fonts" / "NotoSansSC-subset.otf"  # that of common/viz.py, which needs torch
NO_DEPENDENCIES = ("cn_clip", "gradio")  # of requirements-no-deps.txt
INSTALL = f"{Path(sys.executable).name} -m pip install -r requirements.txt"


def findings() -> Iterator[Finding]:
    """Python, packages, torch and torchvision, notebook kernel, Chinese font, ffmpeg."""
    yield python(sys.version_info[:3])
    yield packages(ROOT / "pyproject.toml")
    yield torch_pair()
    yield kernel()
    yield font()
    yield ffmpeg()


def python(version: tuple[int, int, int], oldest: tuple[int, int] = (3, 11)) -> Finding:
    """The version of Python."""
    shown = ".".join(map(str, version))
    if version[:2] >= oldest:
        return fine("Python", f"{shown}, {sys.executable}")
    needed = ".".join(map(str, oldest))
    return wrong(
        "Python",
        f"{shown}, and {needed} or newer is needed",
        f"python{needed} -m venv .venv, then install again (README.md)",
    )


def packages(project: Path) -> Finding:
    """Whether every package that pyproject.toml lists is installed."""
    if not project.exists():
        return note("packages", f"there is no {project.name} to compare with")
    listing = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    needed = [requirement for requirement in map(Requirement, listing) if applies(requirement)]
    names = [requirement.name for requirement in needed]
    missing = [name for name in names if not installed(name)]
    if missing:
        return wrong("packages", f"missing: {listed(missing)}", INSTALL)
    if missing := [name for name in NO_DEPENDENCIES if not installed(name)]:
        return wrong("packages", f"missing: {listed(missing)}", "pip install --no-deps -r requirements-no-deps.txt")
    return fine("packages", f"all {len(names) + len(NO_DEPENDENCIES)} are installed")


def applies(requirement: Requirement) -> bool:
    """Whether a requirement is one of this Python and this system: "audioop-lts; python_version >= '3.13'"."""
    return requirement.marker is None or requirement.marker.evaluate()


def installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def torch_pair() -> Finding:
    """torch and torchvision must have been built for each other."""
    try:
        check_versions()
    except UserError as problem:
        return wrong("torch, torchvision", str(problem).partition(";")[0], INSTALL)
    both = [importlib.metadata.version(name) for name in ("torch", "torchvision")]
    release = ".".join(both[0].split(".")[:2])
    versions = ", ".join(both)
    if release not in TORCHVISION_FOR:
        versions = f"{versions} (the course is tested with {', '.join(TORCHVISION_FOR)})"
    return fine("torch, torchvision", versions)


def kernel() -> Finding:
    """Whether a notebook that names the kernel python3 gets this Python."""
    try:
        kernelspec = importlib.import_module("jupyter_client.kernelspec")  # a part of ipykernel's installation
    except ImportError:
        return wrong("notebook kernel", "jupyter is not installed", INSTALL)
    try:
        command = kernelspec.KernelSpecManager().get_kernel_spec("python3").argv
    except kernelspec.NoSuchKernel:
        return wrong(
            "notebook kernel", "there is no kernel python3", f"{sys.executable} -m ipykernel install --sys-prefix"
        )
    return kernel_of(command[0] if command else "")


def kernel_of(python: str) -> Finding:
    """python: the first word of the kernel's command, a path or a name."""
    if Path(python).parent in (Path(), Path(sys.executable).parent):
        return fine("notebook kernel", "python3 runs this Python")
    return wrong(
        "notebook kernel",
        f"python3 runs {python}, not this Python",
        f"{sys.executable} -m ipykernel install --sys-prefix",
    )


def font(path: Path = FONT) -> Finding:
    """The font for Chinese words in figures, which comes with the course, so that the system needs none."""
    from PIL import ImageFont

    try:
        family, _ = ImageFont.truetype(path, 12).getname()
    except OSError as problem:
        seen = f"{path.name} is missing or cannot be read ({explain(problem)}), so Chinese lessons stop at their first figure"
        return wrong("Chinese font", seen, "git checkout common/fonts, or download the course again")
    return fine("Chinese font", f"{family}, which comes with the course")


def ffmpeg() -> Finding:
    """The program behind MP4 films (chapter 6)."""
    try:
        import imageio_ffmpeg

        path = imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as problem:
        return wrong(
            "ffmpeg", f"not found ({explain(problem)})", "pip install imageio-ffmpeg; films as GIF or WebP need none"
        )
    return fine("ffmpeg", Path(path).name)
