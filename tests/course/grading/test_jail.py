"""What a hand-in sees of the file system: Python and its packages wherever they lie, and nothing of the course."""

import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

import pytest

from common.grade.chapter import COURSE, exercises_of
from common.grade.checks import load_chapter
from common.grade.marking.judge import grade_work
from common.grade.marking.results import Findings, Limits, Work
from common.grade.sandbox import jail
from common.grade.sandbox.warm import WarmProcess

NAMESPACES = (
    sys.platform == "linux"
    and subprocess.run(
        ["unshare", "--user", "--map-root-user", "--net", "--mount", "true"], capture_output=True
    ).returncode
    == 0
)
pytestmark = pytest.mark.skipif(not NAMESPACES, reason="this system does not permit namespaces")

# run by the Python of an environment, as the warm process is: what can be done in the jail, as JSON
LOOK = """
import importlib, json, os, sys, types
from pathlib import Path

folder, course = sys.argv[1:]
for name, path in (("common", []), ("common.grade", []), ("common.grade.sandbox", [folder])):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = path
from common.grade.sandbox import jail
missing = jail.enter(Path(course))
packages = next(path for path in sys.path if path.endswith("site-packages"))

def attempt(do):
    try:
        return str(do())
    except OSError as problem:
        return type(problem).__name__

print(json.dumps({
    "missing": missing,
    "package": importlib.import_module("only_here").VALUE,
    "standard library": importlib.import_module("xmlrpc.client").__name__,
    "course": attempt(lambda: open(Path(course) / "common" / "solutions.py").read()),
    "packages": attempt(lambda: open(Path(packages) / "written", "w").write("x")),
    "scratch": attempt(lambda: open("written", "w").write("x")),
}))
"""


def a_course(folder: Path) -> Path:
    (folder / "common").mkdir(parents=True)
    (folder / "common/solutions.py").write_text("secret")
    return folder


def an_environment(folder: Path) -> Path:
    """A virtual environment with a package of its own."""
    venv.create(folder, symlinks=True)
    packages = next(folder.glob("lib/python3*/site-packages"))
    (packages / "only_here").mkdir()
    (packages / "only_here/__init__.py").write_text("VALUE = 'imported'\n")
    return packages


def look(folder: Path, course: Path, prefix: Sequence[str] = ()) -> dict:
    """What a process in the jail finds, with the Python of the environment in this folder."""
    call = [*prefix, folder / "bin/python", "-s", "-c", LOOK, Path(jail.__file__).parent, course]
    done = subprocess.run(call, capture_output=True, text=True, cwd="/", env={"PATH": os.environ["PATH"]})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


SEEN = {"missing": [], "package": "imported", "standard library": "xmlrpc.client", "scratch": "1"}
SEEN |= {"course": "FileNotFoundError", "packages": "OSError"}


@pytest.fixture(params=["/tmp", "/var/tmp", "/opt", "~"])
def place(request):
    """A new folder at one of the places where people keep environments."""
    parent = os.path.expanduser(request.param)
    if not os.access(parent, os.W_OK):
        pytest.skip(f"{parent} cannot be written to")
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        yield Path(folder).resolve()


def test_an_environment_may_lie_beside_the_course(place):
    an_environment(place / "env")
    assert look(place / "env", a_course(place / "course")) == SEEN


def test_an_environment_may_lie_within_the_course(place):
    course = a_course(place / "course")
    an_environment(course / ".venv")
    assert look(course / ".venv", course) == SEEN


@pytest.fixture
def scratch():
    """A new folder in what is the scratch folder in the jail."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder).resolve()


@pytest.fixture
def elsewhere():
    """A new folder in another place."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        yield Path(folder).resolve()


def test_the_course_may_lie_within_the_environment_and_another_environment_within_the_course(elsewhere):
    (an_environment(elsewhere / "env") / "more.pth").write_text(f"{elsewhere}/env/course/.venv/lib/site-packages\n")
    course = a_course(elsewhere / "env/course")
    (course / ".venv/lib/site-packages").mkdir(parents=True)
    next(elsewhere.glob("env/lib/python3*/site-packages/only_here")).rename(
        course / ".venv/lib/site-packages/only_here"
    )
    assert look(elsewhere / "env", course) == SEEN


def test_an_environment_may_be_reached_by_a_link(scratch, elsewhere):
    an_environment(elsewhere / "real")
    (scratch / "link").symlink_to(elsewhere / "real")
    assert look(scratch / "link", a_course(scratch / "course")) == SEEN


def test_the_packages_of_an_environment_may_lie_elsewhere(scratch, elsewhere):
    """As where an installation shares one folder of packages."""
    packages = an_environment(scratch / "env")
    packages.rename(elsewhere / "packages")
    packages.symlink_to(elsewhere / "packages")
    assert look(scratch / "env", a_course(scratch / "course")) == SEEN


def test_packages_may_be_named_in_a_file(scratch, elsewhere):
    """A .pth file names the packages of another environment."""
    packages = an_environment(scratch / "env")
    (packages / "only_here").rename(elsewhere / "only_here")
    (packages / "more.pth").write_text(f"{elsewhere}\n")
    assert look(scratch / "env", a_course(scratch / "course")) == SEEN


def test_the_python_of_an_environment_may_be_a_link_to_a_link(scratch):
    an_environment(scratch / "env")
    (scratch / "python").symlink_to((scratch / "env/bin/python").resolve())
    (scratch / "env/bin/python").unlink()
    (scratch / "env/bin/python").symlink_to(scratch / "python")
    assert look(scratch / "env", a_course(scratch / "course")) == SEEN


def test_a_course_stays_hidden_under_another_name(scratch):
    """A .pth file, as of an editable installation, names the course by a link to it."""
    course = a_course(scratch / "course")
    (scratch / "link").symlink_to(course)
    packages = an_environment(scratch / "env")
    (packages / "course.pth").write_text(f"{scratch}/link\n{scratch}/link/common\n{course}/common\n")
    assert look(scratch / "env", course) == SEEN
    assert look(scratch / "env", scratch / "link") == SEEN


def test_what_is_mounted_in_the_packages_is_read_only_too(scratch):
    packages = an_environment(scratch / "env")
    within = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    within += [f'mount -t tmpfs none {packages} && cp -r {scratch}/only_here {packages} && exec "$@"', "sh"]
    (packages / "only_here").rename(scratch / "only_here")
    assert look(scratch / "env", a_course(scratch / "course"), within) == SEEN


def test_a_hand_in_is_graded_by_an_environment_in_the_scratch_folder(scratch, monkeypatch):
    """With torch, and with packages that are imported only when they are needed."""
    packages = an_environment(scratch / "env")
    (packages / "more.pth").write_text("\n".join(each for each in sys.path if each.endswith("-packages")))
    monkeypatch.setattr(sys, "executable", str(scratch / "env/bin/python"))
    text = (
        "def alpha_bars(betas):\n    import only_here, torch.fft, scipy.signal\n    raise KeyError(only_here.VALUE)\n"
    )
    work, chapter, report = Work({"mine.py": text.encode()}, "mine.py"), load_chapter(exercises_of("01")), Findings()
    with WarmProcess(COURSE) as warm:
        found = next(grade_work(warm.forks, chapter, work, 0, [1], Limits(120), report))
    assert found.message == "your code stopped in line 3 with KeyError: 'imported'" and report.missing == []
