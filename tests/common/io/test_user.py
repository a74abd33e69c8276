"""Users whom the system does not know, and paths in the home directory."""

import getpass
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from common.cli import home_expanded
from common.io import user
from helpers.programs import ROOT, environment

NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")  # where getpass looks for a user's name


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no database of users")
def test_a_user_whom_the_system_does_not_know(monkeypatch):
    import pwd

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in (*NAMES, "HOME"):
        monkeypatch.setenv(name, "x")  # so that the test's own changes are undone
        monkeypatch.delenv(name)
    with pytest.raises((KeyError, OSError)):
        getpass.getuser()
    user.name_unknown_user()
    assert getpass.getuser() == f"user-{os.getuid()}"
    assert Path.home() == Path(tempfile.gettempdir())


def test_a_user_whom_the_system_knows_stays(monkeypatch):
    monkeypatch.setenv("LOGNAME", "ada")
    monkeypatch.setenv("HOME", "/home/ada")
    before = dict(os.environ)
    user.name_unknown_user()
    assert dict(os.environ) == before


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no database of users")
def test_torch_can_be_loaded_by_an_unknown_user():
    """Through torchvision, which asks for torch's cache, in the folder of the user's name."""
    code = "import pwd\ndef unknown(uid): raise KeyError(uid)\npwd.getpwuid = unknown\nimport common, torchvision"
    variables = {name: value for name, value in environment().items() if name not in (*NAMES, "HOME")}
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
