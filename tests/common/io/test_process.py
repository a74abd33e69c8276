"""Text in any encoding (output, arguments, files), unknown users, and paths in the home directory."""

import ast
import getpass
import io
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from common.cli import home_expanded
from common.io import process
from helpers.programs import ROOT, environment

NAMES = "番茄炒蛋🍅 ± ᾱ → É \udcff"  # Chinese, an emoji, signs that programs print, and a byte of a file name that is not valid UTF-8
FOLDERS = ["bench", "common", *sorted(path.name for path in ROOT.glob("0[0-9]_*"))]
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
# as cron or ssh can have it: everything is ASCII
POSIX = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


# -------------------------------------------------------------------------------------------------------------- memory

# Blocks of 8 MB, as a training step takes and frees them; each has 2,048 pages that must be written before they count.
TAKE_AND_FREE = """
import resource
{first}
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
some = [b"x" * 2**23 for _ in range(8)]
del some
before = faults()
for _ in range(10):
    some = [b"x" * 2**23 for _ in range(8)]
    del some
print(faults() - before)
"""


def page_faults(first: str, **own: str) -> int:
    code = TAKE_AND_FREE.format(first=first)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment() | own, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_freed_memory_is_used_again():
    """Without page faults; a user's own setting wins."""
    kept = page_faults("import common")
    own = page_faults("import common", MALLOC_TRIM_THRESHOLD_="131072", MALLOC_MMAP_THRESHOLD_="131072")
    assert 20 * kept < own


# -------------------------------------------------------------------------------------------------------------- output


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("name", ["ascii", "latin-1", "cp1252", "gbk", "shift_jis", "utf-8"])
def test_every_string_can_be_printed(monkeypatch, stream, name):
    written = io.BytesIO()
    monkeypatch.setattr(sys, stream, io.TextIOWrapper(written, encoding=name))
    with pytest.raises(UnicodeEncodeError):
        print(NAMES, file=getattr(sys, stream), flush=True)

    def shown(character: str) -> str:
        try:
            return character.encode(name).decode(name)
        except UnicodeEncodeError:
            return character.encode("ascii", "backslashreplace").decode()

    process.accept_any_text()
    print(NAMES, file=getattr(sys, stream), flush=True)
    assert written.getvalue().decode(name) == "".join(map(shown, NAMES)) + os.linesep


def test_streams_that_are_missing_or_no_files(monkeypatch):
    notebook = io.StringIO()
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", notebook)
    process.accept_any_text()
    print(NAMES)
    print(NAMES, file=sys.stderr)
    sys.stdout.close()
    assert notebook.getvalue() == NAMES + "\n"


HELP = """
import contextlib, io, os, runpy, sys
for program in sys.argv[1:]:
    before, sys.argv = set(sys.modules), [program, "--help"]
    sys.path.insert(0, os.path.dirname(program))
    try:
        if program.startswith("common."):
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(program, run_name="__main__")
    except SystemExit as stop:
        print("ended", program, stop.code or 0)
    del sys.path[0]
"""


def programs(folder: str) -> list[str]:
    """All programs in a folder, as files, or as modules where they belong to the package."""
    files = [
        path
        for path in SOURCES
        if path.relative_to(ROOT).parts[0] == folder and "run(main, Args)" in path.read_text(encoding="utf-8")
    ]
    names = [path.relative_to(ROOT).as_posix() for path in files]
    return [
        name.removesuffix(".py").removesuffix("/__main__").replace("/", ".") if folder == "common" else name
        for name in names
    ]


@pytest.mark.parametrize("folder", FOLDERS)
def test_help_of_every_program_in_a_narrow_encoding(folder):
    """Many quote Chinese examples."""
    found = programs(folder)
    assert found
    done = subprocess.run(
        [sys.executable, "-c", HELP, *found],
        cwd=ROOT,
        env=environment() | {"PYTHONIOENCODING": "cp1252"},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert [line for line in done.stdout.decode("cp1252").splitlines() if line.startswith("ended")] == [
        f"ended {name} 0" for name in found
    ]


def test_a_program_prints_what_its_output_cannot_show(tmp_path):
    flags = ["-m", "common.data.dishes", "--n", 2, "--captions", "--out", tmp_path / "番茄.png"]
    done = subprocess.run(
        [sys.executable, *map(str, flags)],
        cwd=ROOT,
        env=environment() | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
    )
    assert done.returncode == 0 and b"\\u" in done.stdout, done.stderr.decode()
    assert (tmp_path / "番茄.png").exists()


# ----------------------------------------------------------------------------------------------------------- arguments

PROGRAM = '''"""A program."""
from dataclasses import dataclass
from pathlib import Path

import tyro

from common.cli import run


@dataclass(frozen=True)
class Args:
    name: tyro.conf.Positional[str]
    """A name."""
    out: Path
    """A file."""


def main(args: Args) -> None:
    args.out.write_text(args.name, encoding="utf-8")
    print(args.name, sorted(path.name for path in args.out.parent.iterdir()))


if __name__ == "__main__":
    run(main, Args)
'''


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file names are UTF-8 whatever the locale says")
@pytest.mark.parametrize("as_module", [False, True])
def test_arguments_and_file_names_in_a_posix_locale(tmp_path, as_module):
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    (tmp_path / "菜").mkdir()
    start = ["-m", "program"] if as_module else ["program.py"]
    env = environment() | POSIX | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    done = subprocess.run(
        [sys.executable, *start, "番茄炒蛋", "--out", "菜/名.txt"], cwd=tmp_path, env=env, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode("utf-8") == "番茄炒蛋 ['名.txt']\n"
    assert (tmp_path / "菜/名.txt").read_text(encoding="utf-8") == "番茄炒蛋"


@pytest.fixture
def restarts(monkeypatch):
    """restarts(original, argv, encoding): the command with which the program would start again, or None."""

    def call(original: list[str], argv: list[str], name: str, **variables: str):
        commands = []
        monkeypatch.setattr(
            os, "execve", lambda path, command, env: commands.append((path, command, env["PYTHONUTF8"]))
        )
        monkeypatch.setattr(sys, "orig_argv", original)
        monkeypatch.setattr(sys, "argv", argv)
        monkeypatch.setattr(sys, "getfilesystemencoding", lambda: name)
        monkeypatch.delenv("PYTHONUTF8", raising=False)
        for key, value in variables.items():
            monkeypatch.setenv(key, value)
        process.restart_in_utf8()
        return commands[0] if commands else None

    return call


def test_when_a_program_starts_again(restarts):
    lost = "番".encode().decode("ascii", "surrogateescape")
    again = (sys.executable, [sys.executable, "-X", "utf8", "-u", "x.py", lost], "1")
    program = ["python", "-u", "x.py", lost], ["x.py", lost]
    assert restarts(*program, "gbk") == again
    assert restarts(*program, "ANSI_X3.4-1968") == again
    assert restarts(["python", "-m", "common.grade", "01"], ["/there/common/grade/grader.py", "01"], "ascii")[1][
        3:
    ] == ["-m", "common.grade", "01"]
    assert restarts(["python", "x.py", "番"], ["x.py", "番"], "gbk") is None  # GBK could decode it
    assert restarts(*program, "utf-8") is None  # not valid UTF-8: a restart would not help
    assert restarts(*program, "ascii", PYTHONUTF8="1") is None  # was tried
    for original in (
        ["python", "-m", "pytest", "-q"],
        ["python", "-m", "ipykernel_launcher", "-f", lost],
        ["python", "-c", "code"],
    ):
        assert restarts(original, ["x.py", lost], "ascii") is None, "a test or a notebook is not started again"


# --------------------------------------------------------------------------------------------------------------- files


def without_encoding(tree: ast.AST) -> list[int]:
    """Lines that open a text file, or decode a process's output, in whatever encoding the system has."""
    found = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        owner = (
            call.func.value.id
            if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name)
            else ""
        )
        keys = {keyword.arg: keyword.value for keyword in call.keywords}
        modes = [
            a.value
            for a in [*call.args, *filter(None, [keys.get("mode")])]
            if isinstance(a, ast.Constant) and isinstance(a.value, str)
        ]
        binary = any("b" in mode and len(mode) <= 3 for mode in modes)
        opens = (name in ("read_text", "write_text", "fdopen") and isinstance(call.func, ast.Attribute)) or (
            name == "open" and owner not in ("Image", "lmdb", "os", "webbrowser")
        )
        decodes = any(
            isinstance(keys.get(key), ast.Constant) and keys[key].value is True
            for key in ("text", "universal_newlines")
        )
        if (opens and not binary or decodes) and "encoding" not in keys and None not in keys:
            found.append(call.lineno)
    return found


def test_text_is_read_and_written_as_utf8():
    assert without_encoding(
        ast.parse("open(p)\np.open('rb')\np.read_text()\nrun(text=True)\nopen(p, encoding='utf-8')\nImage.open(p)")
    ) == [1, 3, 4]
    lines = {
        path.relative_to(ROOT).as_posix(): without_encoding(ast.parse(path.read_text(encoding="utf-8")))
        for path in SOURCES
    }
    assert {name: found for name, found in lines.items() if found} == {}


# --------------------------------------------------------------------------------------------------------------- users

USER_VARIABLES = ("LOGNAME", "USER", "LNAME", "USERNAME")  # where getpass looks for a user's name


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no database of users")
def test_a_user_whom_the_system_does_not_know(monkeypatch):
    import pwd

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in (*USER_VARIABLES, "HOME"):
        monkeypatch.setenv(name, "x")  # so that the test's own changes are undone
        monkeypatch.delenv(name)
    with pytest.raises((KeyError, OSError)):
        getpass.getuser()
    process.name_unknown_user()
    assert getpass.getuser() == f"user-{os.getuid()}"
    assert Path.home() == Path(tempfile.gettempdir())


def test_a_user_whom_the_system_knows_stays(monkeypatch):
    monkeypatch.setenv("LOGNAME", "ada")
    monkeypatch.setenv("HOME", "/home/ada")
    before = dict(os.environ)
    process.name_unknown_user()
    assert dict(os.environ) == before


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no database of users")
def test_torch_can_be_loaded_by_an_unknown_user():
    """Through torchvision, which asks for torch's cache, in the folder of the user's name."""
    code = "import pwd\ndef unknown(uid): raise KeyError(uid)\npwd.getpwuid = unknown\nimport common, torchvision"
    variables = {name: value for name, value in environment().items() if name not in (*USER_VARIABLES, "HOME")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("~/pictures", "HOME/pictures"),
        ("--data=~/pictures", "--data=HOME/pictures"),
        ("--data", "--data"),
        ("a ~/b", "a ~/b"),
        ("~", "~"),
        ("~40 red creatures", "~40 red creatures"),
        ("--prompt=a=~/b", "--prompt=a=~/b"),
        ("x=~/y", "x=~/y"),
    ],
)
def test_paths_in_the_home_directory(monkeypatch, word, meant):
    monkeypatch.setenv("HOME", "HOME")
    monkeypatch.setenv("USERPROFILE", "HOME")
    assert home_expanded(word) == meant
