"""The warm process: it imports torch once, and is forked for every submission and every judge."""

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from common.grade.sandbox.protocol.wire import Channel, ChannelError

START = 300.0  # seconds that a process may take to import torch, on the slowest disk


# a process that knows the modules of this folder by their names, and no other part of the course
BEGIN = f"""
import sys, types
for name, path in (("common", []), ("common.grade", []), ("common.grade.sandbox", [{str(Path(__file__).parent)!r}])):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = path
from common.grade.sandbox import guest
"""


class Forks:
    """The warm process, as those see it who ask it for children."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control

    def fork(self, request: dict) -> tuple[socket.socket, int]:
        """A new child: the connection to it, and its number."""
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self.control, [json.dumps(request).encode()], [theirs.fileno()])
            answer = self.control.recv(4096)
        if not answer:
            raise ChannelError("ended", "the process that starts others has ended")
        return ours, json.loads(answer)["pid"]

    def end(self, pid: int) -> None:
        """End a child and all that it has started."""
        self.control.sendall(json.dumps({"do": "kill", "pid": pid}).encode())
        self.control.recv(4096)


class WarmProcess:
    """Starts the process that imports torch once and is forked for each submission. Killed on leaving the `with`."""

    def __init__(self, course: Path, preload: Sequence[str] = (), hash_seed: int = 0) -> None:
        self.course, self.preload, self.hash_seed = str(course), list(preload), hash_seed

    def __enter__(self) -> "WarmProcess":
        self.control, theirs = socket.socketpair()
        self.errors = tempfile.TemporaryFile()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-s", "-c", BEGIN + "guest.main()", self.course, str(theirs.fileno()), *self.preload],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self.errors,
                cwd="/",
                env=clean_environment(self.hash_seed),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self.forks = Forks(self.control)
        return self

    def judge(self) -> tuple[Channel, int]:
        """A new process that judges: see `answer`."""
        request = {"do": "judge", "environment": dict(os.environ), "folder": os.getcwd(), "course": self.course}
        self.control.settimeout(START)
        try:
            connection, pid = self.forks.fork(request)
        except TimeoutError:
            raise ChannelError("late") from None
        except OSError:
            raise ChannelError("ended") from None
        return Channel(connection), pid

    def why_ended(self, kind: str = "ended") -> str:
        """Why there is no answer, with the last line that the process wrote to stderr."""
        self.errors.seek(0)
        lines = self.errors.read().decode("utf-8", "replace").strip().splitlines()
        silent = f"no answer within {START:g} s" if kind == "late" else "the process ended without an answer"
        return "; ".join([silent, *lines[-1:]])

    def __exit__(self, *_: object) -> None:
        self.control.close()  # upon which the process ends its children and itself
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.errors.close()


class Spawns:
    """Starts a new process for each submission, where the system has no fork (Windows). Nothing there is isolated."""

    def __init__(self, course: Path, hash_seed: int = 0) -> None:
        self.course, self.hash_seed = str(course), hash_seed
        self.children: list[subprocess.Popen] = []

    def fork(self, request: dict) -> tuple[socket.socket, int]:
        """A new process: the connection to it, and its number here."""
        token = secrets.token_hex(16)
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(START)
            code = BEGIN + "guest.alone(*sys.argv[1:])"
            child = subprocess.Popen(
                [sys.executable, "-s", "-c", code, self.course, str(server.getsockname()[1]), token],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=tempfile.mkdtemp(),
                env=clean_environment(self.hash_seed),
            )
            self.children.append(child)
            connection, _ = server.accept()
        if Channel(connection).exactly(len(token)) != token.encode():
            raise ChannelError("garbled")
        return connection, len(self.children) - 1

    def end(self, number: int) -> None:
        """End a child."""
        if 0 <= number < len(self.children):
            self.children[number].kill()
            self.children[number].wait()


def clean_environment(hash_seed: int = 0) -> dict[str, str]:
    """The environment of submissions: nothing of the teacher's but where programs are."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT") if name in os.environ}
    fixed = {"HOME": "/tmp", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    fixed |= {"USER": "student", "LOGNAME": "student"}  # torch asks who runs it, and there is no /etc/passwd
    return kept | fixed | {"PYTHONHASHSEED": str(hash_seed), "PYTHONDONTWRITEBYTECODE": "1"}
