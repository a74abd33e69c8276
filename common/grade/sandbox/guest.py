"""The processes that hold submissions.

`serve` is a warm process that has imported torch. It forks a child for each submission, so that torch is imported once,
and other children that judge. A child that holds a submission goes into the jail (jail.py) before it reads the file.

The guest does what the grader asks for: `load` a file, begin an `exercise`, `get` a function of the file.
"""

import gc
import json
import os
import random
import select
import signal
import socket
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from common.grade.sandbox import folders, source
from common.grade.sandbox.protocol.errors import frames, readable
from common.grade.sandbox.protocol.peer import Peer
from common.grade.sandbox.protocol.wire import Channel, ChannelError

PRELOADED = ("torch.nn.functional", "torch.linalg", "scipy.ndimage", "typing", "itertools", "functools", "dataclasses")


class Guest:
    """The process that holds one submission."""

    def __init__(self, channel: Channel, missing: list[str]) -> None:
        self.peer = Peer(channel, judge=False)
        self.peer.places_of = self.places
        self.peer.commands = {"read": self.read, "load": self.load, "exercise": self.exercise, "get": self.get}
        self.missing, self.module, self.before = missing, ModuleType("submission"), dict[str, Any]()
        self.path, self.data = Path("submission.py"), b""

    def run(self) -> None:
        """Do what is asked for until the grader hangs up."""
        with suppress(ChannelError):
            while True:
                self.peer.serve(*self.peer.channel.receive())

    def places(self, problem: BaseException) -> list[str]:
        """The lines of the submission that an exception has passed."""
        places = [source.place_of(name, line, self.path) for name, line in frames(problem)]
        if isinstance(problem, SyntaxError):
            places.append(source.place_of(problem.filename, problem.lineno, self.path))
        return [place for place in places if place]

    def read(self, message: dict, buffers: list) -> dict:
        """Take the files and say what can be said of them before a line has run."""
        files = {name: bytes(buffers[at]) for name, at in message["files"].items()}
        main = message["main"]
        for name, data in files.items():
            if name != main:
                with suppress(OSError):
                    Path(name).parent.mkdir(parents=True, exist_ok=True)
                    Path(name).write_bytes(data)
        self.path, self.data = Path(message["shown"]), files[main]
        found: dict = {"flags": [], "digests": {}, "outlines": {}}
        with suppress(RecursionError, MemoryError):
            if message["survey"]:
                found = source.survey(self.path, self.data)
        return found | {"missing": self.missing}

    def load(self, message: dict, buffers: list) -> dict:
        """Run the file, as much of it as can be run. Returns the first thing that went wrong."""
        sys.path.insert(0, os.getcwd())
        begin()
        module, problem = self.module, None
        module.__file__ = str(self.path)
        sys.modules["submission"] = module
        vars(module)["display"] = lambda *_, **__: None  # what a notebook calls to show something
        try:
            for step in source.steps(self.path, self.data):
                try:
                    if isinstance(step, BaseException):
                        raise step
                    exec(step, vars(module))
                except Exception as error:
                    problem = problem or self.loading(error)
        except BaseException as error:  # also exit() at the top, after which nothing more is run
            problem = problem or self.loading(error)
        self.before = dict(vars(module))
        self.peer.records.update({name: each for name, each in self.before.items() if is_record(each)})
        return {"problem": problem}

    def loading(self, error: BaseException) -> str:
        """What went wrong while the file was run, in words."""
        if isinstance(error, source.UnreadableSubmission):
            return str(error)
        places = self.places(error)
        if isinstance(error, SyntaxError) and places:
            return f"{places[-1]}: {readable(Exception(error.msg))}"
        where = f"your code stopped in {places[-1]}" if places else "your code stopped"
        return f"{where} with {type(error).__name__}: {readable(error)[:300]}".removesuffix(": ")

    def exercise(self, message: dict, buffers: list) -> dict:
        """Begin an exercise: forget the last one, and take the functions that the grader lends."""
        self.peer.forget()
        vars(self.module).clear()
        vars(self.module).update(self.before)
        begin()
        lent = self.peer.decode(message["lent"], buffers)
        vars(self.module).update(lent)
        return {}

    def get(self, message: dict, buffers: list) -> Any:
        """Whether the file defines a name, and what it means."""
        name = message["name"]
        if name not in vars(self.module):
            fallback = vars(self.module).get("__getattr__")
            return (False, None) if fallback is None else (True, fallback(name))
        return True, vars(self.module)[name]


def is_record(each: Any) -> bool:
    return isinstance(each, type) and (hasattr(each, "_fields") or hasattr(each, "__dataclass_fields__"))


def begin() -> None:
    """The same state of torch and of all random generators, whatever ran before."""
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.default_generator.manual_seed(0)  # torch.manual_seed also notes where it was called, for other devices
    random.seed(0)
    np.random.seed(0)


# ------------------------------------------------------------------------------------------------- the warm process


def hold_submission(connection: socket.socket, course: Path) -> None:
    """What a child does that holds a submission; it never returns."""
    try:
        os.setsid()  # so that a signal to the process group reaches no other process
        nowhere = os.open(os.devnull, os.O_RDWR)
        channel = os.dup(connection.fileno())
        for standard in (0, 1, 2):
            os.dup2(nowhere, standard)
        os.dup2(channel, 3)
        os.closerange(4, 4096)
        from common.grade.sandbox import jail

        jail.address_space()
        missing = jail.enter(course)
        os.environ.update(HOME=os.getcwd(), TMPDIR=os.getcwd())
        Guest(Channel(socket.socket(fileno=3)), missing).run()
    finally:
        os._exit(0)


def forget_course(course: Path) -> None:
    """Let `import common` find nothing, even where the files can be read."""
    sys.meta_path[:] = [each for each in sys.meta_path if "__editable__" not in getattr(each, "__module__", "")]
    sys.path[:] = [each for each in sys.path if each and not folders.of_course(each, str(course))]
    sys.path_importer_cache.clear()


def warm_up(preload: list[str]) -> None:
    torch.set_num_threads(1)
    for name in preload:
        with suppress(ImportError):
            __import__(name)


def become_judge(connection: socket.socket, control: socket.socket, request: dict) -> None:
    """What a child does that judges: only here the course is imported."""
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    for name in [name for name in sys.modules if name.split(".")[0] == "common"]:
        del sys.modules[name]  # in the warm process these are the files of this folder alone
    sys.path.insert(0, request["course"])
    from common.grade.marking.judge import answer  # type: ignore[import-not-found,unused-ignore]

    answer(connection, control)


def serve(control: socket.socket, course: Path) -> None:
    """Fork children on request until there is no one left who could ask.

    A request is a JSON object with one socket, that of the new child, or with another connection for requests.
    """
    gc.collect()
    gc.freeze()  # children need not search, and so copy, what is there now
    controls, children = [control], dict[int, socket.socket]()
    while controls:
        ready, _, _ = select.select(controls, [], [], 5.0)
        reap(children)
        for each in ready:
            try:
                data, fds, _, _ = socket.recv_fds(each, 2**20, 2)
            except OSError:
                data, fds = b"", []
            if not data:
                controls.remove(each)
                for pid in [pid for pid, owner in children.items() if owner is each]:
                    end(pid, children)
                each.close()
                continue
            request = json.loads(data)
            sockets = [socket.socket(fileno=fd) for fd in fds]
            if request["do"] == "kill":
                end(request["pid"], children)
                each.sendall(b"{}")
                continue
            other, ours = socket.socketpair() if request["do"] == "judge" else (None, None)
            pid = os.fork()
            if pid == 0:
                for inherited in [*controls, ours]:
                    if inherited:
                        inherited.close()
                if other is None or ours is None:
                    hold_submission(sockets[0], course)
                    os._exit(1)
                try:
                    become_judge(sockets[0], other, request)
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(0)
            children[pid] = each
            sockets[0].close()
            if other and ours:  # a judge asks for children of its own
                other.close()
                controls.append(ours)
            each.sendall(json.dumps({"pid": pid}).encode())


def reap(children: dict[int, socket.socket]) -> None:
    """Forget children that have ended."""
    for pid in list(children):
        with suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0]:
                del children[pid]


def end(pid: int, children: dict[int, socket.socket]) -> None:
    """End a child, and with it all processes that it has started."""
    if pid in children:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)
        del children[pid]


def main() -> None:
    """python -c "..." COURSE CONTROL [PACKAGE ...]: the number of the control socket, and packages to import first."""
    course, control, *preload = sys.argv[1:]
    forget_course(Path(course))
    warm_up([*PRELOADED, *preload])
    serve(socket.socket(fileno=int(control)), Path(course))


def alone(course: str, port: str, token: str) -> None:
    """A guest without a warm process, where there is no fork: connect to the grader and hold one submission."""
    forget_course(Path(course))
    warm_up(list(PRELOADED))
    connection = socket.create_connection(("127.0.0.1", int(port)))
    connection.sendall(token.encode())
    missing = ["no isolation of files, network, memory and processes: this system has no fork"]
    Guest(Channel(connection), missing).run()
