"""The handout holds no answer, and what Gradescope and GitHub Classroom get from it works in an environment like theirs."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from datetime import datetime
from pathlib import Path

import pytest
import yaml

import common.handout as handout_program
from common.errors import UserError
from common.grade.chapter import COURSE, exercises_of
from common.grade.checks import load_chapter
from common.grade.marking.handing_out import Autograder, hand_out, is_kept_back
from common.grade.stubs import exercise_names, strip
from common.teach.autograder import find_work, read_metadata

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the warm process is forked")
SOLUTIONS = exercises_of("01") / "solutions.py"
TEXT = SOLUTIONS.read_text(encoding="utf-8")
TOP = {  # the keys of results.json in gradescope-autograders.readthedocs.io/en/latest/specs/
    "score", "execution_time", "output", "output_format", "test_output_format", "test_name_format", "visibility",
    "stdout_visibility", "extra_data", "tests", "leaderboard",
}  # fmt: skip
TEST = {
    "score", "max_score", "status", "name", "name_format", "number", "output", "output_format", "tags", "visibility", "extra_data",
}  # fmt: skip
METADATA = {  # as .../submission_metadata/ shows it, with a student who has an extension
    "id": 123456,
    "created_at": "2026-12-03T14:22:32.365935-08:00",
    "assignment": {"due_date": "2026-12-01T23:00:00.000000-08:00", "id": 25828, "late_due_date": None},
    "submission_method": "upload",
    "users": [{"email": "ada@school.edu", "id": 1234, "name": "Ada", "assignment": {"due_date": "2026-12-02T23:00:00-08:00"}}],
    "previous_submissions": [],
}  # fmt: skip


@pytest.fixture(scope="module")
def handout(tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    settings = Autograder(secret="not for learners", late_per_day=0.1, leaderboard=True)
    hand_out(["01"], out / "handout", out / "autograder.zip", settings)
    return out


def bare(**more: str) -> dict[str, str]:
    """An environment that knows nothing of this machine but where programs are."""
    return {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"} | more


def run(*args, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    env = bare(HOME=str(cwd), PYTHONPATH=str(cwd), **environment)
    return subprocess.run(list(map(str, args)), cwd=cwd, env=env, capture_output=True, text=True)


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


# ------------------------------------------------------------------------------------------------------------- handout


def test_a_handout_holds_no_answer(handout):
    files = [path for path in (handout / "handout").rglob("*") if path.is_file()]
    places = {str(path.relative_to(handout / "handout")) for path in files}
    assert {
        "01_ddpm_mnist/exercises/exercises.py",
        "01_ddpm_mnist/exercises/written.md",
        "01_ddpm_mnist/exercises/written.zh.md",
        "common/grade/program.py",
        ".github/workflows/classroom.yml",
    } <= places
    answers = [p for p in places if re.search(r"exercises/(solutions|checks|answers)\.|mistakes|^tests/|^0[2-6]_", p)]
    assert answers == []
    exercises = handout / "handout/01_ddpm_mnist/exercises"
    assert (exercises / "exercises.py").read_text(encoding="utf-8") == strip(TEXT)
    lines = re.findall(r"# --- solution\n(.*?)\n    # --- ", TEXT, re.DOTALL)
    texts = [path.read_text(encoding="utf-8") for path in exercises.glob("*.py") if path.name != "hints.py"]
    assert lines and not [line for line in lines if any(line in text for text in texts)]


@pytest.mark.parametrize("folder", sorted(COURSE.glob("0[1-6]_*/exercises")), ids=lambda folder: folder.parent.name)
def test_written_questions_are_handed_out_and_their_answers_are_not(folder):
    """In every language that they have."""
    questions, answers = (sorted(folder.glob(f"{name}*")) for name in ("written", "answers"))
    assert [path.name for path in questions] == ["written.md", "written.zh.md"]
    assert [path.name for path in answers] == ["answers.md", "answers.zh.md"]
    assert not any(is_kept_back(path.relative_to(COURSE)) for path in questions)
    assert all(is_kept_back(path.relative_to(COURSE)) for path in answers)


def test_a_handout_has_everything_of_the_chapter_but_what_is_kept_back(handout):
    call = ["git", "-C", COURSE, "ls-files", "01_ddpm_mnist"]
    done = subprocess.run(call, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("this copy of the course has no git history to compare with")
    listed = {name for name in done.stdout.splitlines() if (COURSE / name).is_file()}
    here = {
        str(p.relative_to(handout / "handout")) for p in (handout / "handout/01_ddpm_mnist").rglob("*") if p.is_file()
    }
    missing = {Path(name).name for name in listed - here}
    assert missing <= {"solutions.py", "checks.py", "checks.zh.toml", "answers.md", "answers.zh.md"}
    assert here - listed == {"01_ddpm_mnist/exercises/exercises.json"}


def test_the_blank_files_of_other_languages_must_be_blank(tmp_path, monkeypatch):
    """exercises.zh.py comes from the teacher's working copy, in which somebody may have solved it."""
    import common.grade.marking.handing_out as handing_out

    source, target = tmp_path / "course/01_x/exercises", tmp_path / "out"
    shutil.copytree(exercises_of("01"), source, ignore=shutil.ignore_patterns("__pycache__", "*.png"))
    target.mkdir()
    (target / "exercises.zh.py").write_text(strip(TEXT).replace('"""Exercise 1.', '"""练习 1。'), encoding="utf-8")
    handing_out.write_exercises(source, target)
    (target / "exercises.zh.py").write_text(TEXT, encoding="utf-8")
    with pytest.raises(UserError, match=r"exercises.zh.py holds answers, to alpha_bars, "):
        handing_out.write_exercises(source, target)


def test_a_handout_grades_with_the_public_tests_alone(handout, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(
        TEXT.replace("torch.cat([torch.ones(1), (1 - betas)", "torch.cat([torch.zeros(1), (1 - betas)"),
        encoding="utf-8",
    )
    points = [e.points for e in load_chapter(exercises_of("01")).exercises]
    call = [sys.executable, "-m", "common.grade", "01", "--submission", mine, "--only", 1, 2, 5, "--fail-under"]
    got, all_points = points[1] + points[4], points[0] + points[1] + points[4]
    done = run(*call, all_points, cwd=handout / "handout")
    assert f"{got}/{all_points}" in done.stdout and "public tests alone" in done.stdout, done.stderr
    assert done.returncode == 1
    hint = run(sys.executable, "-m", "common.grade", "01", "--hint", 2, cwd=handout / "handout")
    assert hint.returncode == 0 and "add_noise" in hint.stdout


def test_a_handout_goes_to_a_new_folder(tmp_path):
    (tmp_path / "x").write_text("x")
    with pytest.raises(UserError, match="is not empty"):
        hand_out(["01"], tmp_path, None)
    with pytest.raises(UserError, match="within the course"):
        hand_out(["01"], COURSE / "runs" / "handout", None)
    with pytest.raises(UserError, match="with one chapter"):
        hand_out(["01", "02"], tmp_path / "new", tmp_path / "a.zip")
    assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match="belong to --gradescope"):
        handout_program.main(handout_program.Args(tmp_path / "new", late_per_day=0.1))
    with pytest.raises(UserError, match="cannot be read"):
        handout_program.main(handout_program.Args(tmp_path / "new", secret=tmp_path / "none"))


# ---------------------------------------------------------------------------------------------------- GitHub Classroom


def test_the_workflow_of_github_classroom(handout, tmp_path):
    """Parsed as YAML; its steps are run in a copy of the handout in an empty folder, with a pip that installs nothing."""
    folder = tmp_path / "repository"
    shutil.copytree(handout / "handout", folder)
    flow = yaml.safe_load((folder / ".github/workflows/classroom.yml").read_text(encoding="utf-8"))
    assert flow[True] == ["push", "workflow_dispatch"]  # YAML 1.1 reads `on` as true
    steps = flow["jobs"]["run-autograding-tests"]["steps"]
    tests = [each for each in steps if each.get("uses") == "classroom-resources/autograding-command-grader@v1"]
    assert len(tests) == len(exercise_names(TEXT))
    assert all(set(each["with"]) == {"test-name", "command", "timeout", "max-score"} for each in tests)
    reporter = steps[-1]
    assert reporter["uses"] == "classroom-resources/autograding-grading-reporter@v1"
    runners = reporter["with"]["runners"].split(",")
    assert runners == [each["id"] for each in tests]
    assert reporter["env"] == {f"{r.upper()}_RESULTS": f"${{{{steps.{r}.outputs.result}}}}" for r in runners}

    script(
        tmp_path / "bin/pip",
        f'echo "$@" >> {tmp_path}/pip.txt; shift; while [ $# -gt 0 ]; do [ "$1" != -r ] || test -f "$2" || exit 1; shift; done',
    )
    script(tmp_path / "bin/python", f'exec "{sys.executable}" "$@"')
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    (folder / "01_ddpm_mnist/exercises/exercises.py").write_text(
        strip(TEXT).replace(
            'raise NotImplementedError("exercise 1: alpha_bars")',
            "return torch.cat([torch.ones(1), (1 - betas).cumprod(0)])",
        ),
        encoding="utf-8",
    )

    def step(command: str) -> int:
        return subprocess.run(
            ["bash", "-e", "-c", command], cwd=folder, env=bare(HOME=str(tmp_path), PATH=path)
        ).returncode

    assert [step(each["run"]) for each in steps if "run" in each] == [0]
    assert "-r requirements.txt" in (tmp_path / "pip.txt").read_text()
    assert [step(tests[k]["with"]["command"]) for k in (0, 1)] == [0, 1]  # solved; not solved yet


def test_what_the_handouts_requirements_install_is_there(handout):
    """`-e .` builds the package of pyproject.toml, which needs its readme and every folder that it lists."""
    folder = handout / "handout"
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    assert (folder / project["project"]["readme"]).is_file() and (folder / "constraints.txt").is_file()
    packages = project["tool"]["setuptools"]["packages"]
    assert [name for name in packages if not (folder / name.replace(".", "/") / "__init__.py").is_file()] == []


# ---------------------------------------------------------------------------------------------------------- Gradescope


@pytest.fixture(scope="module")
def container(handout):
    """Gradescope's folder after setup.sh, which runs with an apt-get and a pip that install nothing."""
    root = handout / "autograder"
    with zipfile.ZipFile(handout / "autograder.zip") as archive:
        assert {"setup.sh", "run_autograder", "autograder.json"} <= set(archive.namelist())
        assert all(archive.getinfo(name).external_attr >> 16 == 0o755 for name in ("setup.sh", "run_autograder"))
        archive.extractall(root / "source")
        for info in archive.infolist():  # as unzip does
            (root / "source" / info.filename).chmod(info.external_attr >> 16 & 0o777 or 0o644)
    (root / "submission").mkdir()
    log = handout / "installed.txt"
    script(handout / "bin/apt-get", f'echo apt-get "$@" >> {log}')
    pip = f'#!/bin/sh\\necho "$@" >> {log}\\ntest -f constraints.txt\\n'
    script(
        handout / "bin/python3",
        f'if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin"; printf \'{pip}\' > "$3/bin/pip"; chmod +x "$3/bin/pip"; '
        f'printf \'#!/bin/sh\\nexec "{sys.executable}" "$@"\\n\' > "$3/bin/python"; chmod +x "$3/bin/python"; '
        f'else exec "{sys.executable}" "$@"; fi',
    )
    path = f"{handout / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", root / "source/setup.sh"],
        env=bare(HOME="/", PATH=path, AUTOGRADER=str(root)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    installed = log.read_text().split()
    assert installed[:2] == ["apt-get", "update"] and {"-c", "torch", "scipy", "tyro", "pytest"} <= set(installed)
    assert (root / "source/autograder.json").stat().st_mode & 0o077 == 0
    return root


def in_container(root: Path, new_root: Path) -> subprocess.CompletedProcess:
    """Run Gradescope's command. With `unshare`, it sees /autograder, the system's libraries and this Python, and no course."""
    shutil.copy(root / "source/run_autograder", root / "run_autograder")
    prefixes = {str(Path(p).resolve()) for p in (sys.prefix, sys.base_prefix)} | {
        str(Path(sys.executable).resolve().parents[1])
    }
    places = [
        "/usr",
        "/bin",
        "/lib",
        "/lib64",
        "/etc",
        "/dev",
        "/proc",
        *sorted(p for p in prefixes if not p.startswith("/usr")),
    ]
    lines = [f"mkdir -p {new_root}/autograder {new_root}/tmp", f"mount -t tmpfs none {new_root}/tmp"]
    lines += [f'[ ! -e {p} ] || {{ mkdir -p "{new_root}{p}"; mount --rbind "{p}" "{new_root}{p}"; }}' for p in places]
    lines += [f"mount --bind {root} {new_root}/autograder"]
    command = "env -i HOME=/ LANG=C.UTF-8 PATH=/usr/bin:/bin OMP_NUM_THREADS=1 /autograder/run_autograder"
    lines += [f'exec chroot {new_root} /bin/sh -c "test ! -e {COURSE}/common && {command}"']
    call = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-e", "-c", "\n".join(lines)]
    if shutil.which("unshare") and subprocess.run([*call[:4], "true"], capture_output=True).returncode == 0:
        return subprocess.run(call, capture_output=True, text=True)
    print("without unshare: run_autograder runs with an empty environment, but sees this machine's files")
    env = bare(HOME=str(root), AUTOGRADER=str(root))
    return subprocess.run([root / "run_autograder"], cwd="/", env=env, capture_output=True, text=True)


def test_gradescopes_autograder_in_a_container(container, tmp_path):
    """A late hand-in with a helper beside it, of a student whose due date and id are in submission_metadata.json."""
    helper = "import torch\ndef products(betas):\n    return torch.cat([torch.ones(1), (1 - betas).cumprod(0)])\n"
    (container / "submission/helper.py").write_text(helper)
    answers = strip(TEXT).replace('raise NotImplementedError("exercise 1: alpha_bars")', "return products(betas)")
    answers = "from helper import products\n" + re.sub(
        r"(?ms)^def fifteen_evaluations.*",
        "def fifteen_evaluations(model, x_T, alpha_bar, generator):\n    return x_T\n",
        answers,
    )
    (container / "submission/exercises.py").write_text(answers, encoding="utf-8")
    (container / "submission_metadata.json").write_text(json.dumps(METADATA))
    done = in_container(container, tmp_path / "root")
    assert done.returncode == 0, done.stderr
    found = json.loads((container / "results/results.json").read_text())
    assert set(found) <= TOP and "tests" in found, found
    assert all(set(each) <= TEST for each in found["tests"])
    names = exercise_names(TEXT)
    assert [each["name"] for each in found["tests"]] == names
    assert {each["status"] for each in found["tests"]} == {"passed", "failed"}
    assert found["tests"][0]["status"] == "passed" and found["tests"][1]["output"] == "not solved yet"
    points = load_chapter(exercises_of("01")).exercises[0].points
    assert found["extra_data"]["raw_score"] == points and found["extra_data"]["student"] == "1234"
    assert (
        found["score"] == 0.9 * points and "10%" in found["output"]
    )  # a day after the student's own due date has begun
    assert [each["order"] for each in found["leaderboard"]] == ["asc"] and found["leaderboard"][0]["value"] > 0.03


def test_gradescopes_autograder_writes_a_result_whatever_happens(container, tmp_path):
    for path in (container / "submission").iterdir():
        path.unlink()
    assert in_container(container, tmp_path / "a").returncode == 0
    assert json.loads((container / "results/results.json").read_text())["output"].startswith("Hand in a Python file")
    settings = container / "source/autograder.json"
    text = settings.read_text()
    settings.write_text("{")  # a damaged zip file
    assert in_container(container, tmp_path / "b").returncode == 0
    settings.write_text(text)
    found = json.loads((container / "results/results.json").read_text())
    assert found["score"] == 0 and "without a result" in found["output"]


def test_metadata(tmp_path):
    path = tmp_path / "submission_metadata.json"
    assert read_metadata(path).student == ""  # there is none
    for text in ("", "[]", '{"users": [{"name": "x"}]}', '{"users": [], "created_at": "soon"}'):
        path.write_text(text)
        assert read_metadata(path).due is None
    group = METADATA | {"users": [{"id": 7, "email": "a"}, {"id": 12, "email": "b"}]}
    path.write_text(json.dumps(group))
    found = read_metadata(path)
    assert found.student == "12,7" and found.due == datetime.fromisoformat(METADATA["assignment"]["due_date"])
    path.write_text(json.dumps(METADATA | {"assignment": {"due_date": None}, "users": [{"id": 7}]}))
    assert read_metadata(path).due is None and read_metadata(path).created is not None


def test_work_is_found_in_what_gradescope_extracts(tmp_path):
    assert find_work(tmp_path) is None
    for place in ("a/exercises.ipynb", "a/helper.py", "__MACOSX/exercises.py", "zz.py"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text(place)
    (tmp_path / "exercises.py").symlink_to(SOLUTIONS)
    work = find_work(tmp_path)
    assert work.main == "exercises.ipynb" and set(work.files) == {"exercises.ipynb", "helper.py"}
