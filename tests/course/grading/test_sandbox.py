"""Submissions in a process of their own: what crosses between it and the grader, and what no submission can reach."""

import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from common.grade.chapter import COURSE, exercises_of
from common.grade.checks import Chapter, Exercise, load_chapter
from common.grade.marking.judge import Submission, grade_work
from common.grade.marking.results import Findings, Limits, Work
from common.grade.sandbox.source import likeness, survey
from common.grade.sandbox.warm import WarmProcess

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the warm process is forked")
NUMBERS = sorted(folder.parent.name[:2] for folder in COURSE.glob("[0-9][0-9]_*/exercises"))
NAMESPACES = (
    sys.platform == "linux"
    and subprocess.run(
        ["unshare", "--user", "--map-root-user", "--net", "--mount", "true"], capture_output=True
    ).returncode
    == 0
)
isolated = pytest.mark.skipif(not NAMESPACES, reason="this system does not permit namespaces")


@pytest.fixture(scope="module")
def warm():
    with WarmProcess(COURSE) as process:
        yield process


@pytest.fixture(scope="module")
def first():
    return load_chapter(exercises_of("01"))


def results(warm, chapter, text, only, limits=None, report=None, files=None):
    """{exercise: message} of a submission's text."""
    work = Work((files or {}) | {"mine.py": text.encode() if isinstance(text, str) else text}, "mine.py")
    limits = limits or Limits(120)
    return {
        each.name: each.message
        for each in grade_work(warm.forks, chapter, work, 0, only, limits, report if report else Findings())
    }


@pytest.mark.parametrize("number", NUMBERS)
def test_the_solutions_score_full_marks_in_another_process(warm, number):
    """Without changes: tensors, networks, optimizers, iterators, context managers and gradients all cross."""
    chapter, text = load_chapter(exercises_of(number)), (exercises_of(number) / "solutions.py").read_bytes()
    report = Findings()
    found = results(warm, chapter, text, range(1, len(chapter.exercises) + 1), report=report)
    assert not any(found.values()), found
    assert report.likeness == 1 and (report.missing == [] or not NAMESPACES)


# -------------------------------------------------------------------------------------------------------- what crosses


@pytest.fixture
def peer(warm):
    """Asks a submission of this text for its functions."""
    held = []

    def open_submission(text: str):
        chapter = Chapter([Exercise("f", 1, lambda ex, rng: None)], *(ModuleType(each) for each in "abc"))
        submission = Submission(warm.forks, Work({"mine.py": text.encode()}, "mine.py"), chapter, Limits(300), 1e12)
        held.append(submission.__enter__())
        submission.load()
        from common.grade.marking.judge import Answers
        from common.grade.sandbox.protocol.tensors import Out

        submission.peer.forget()
        submission.peer.ask({"op": "exercise", "lent": submission.peer.encode({}, Out())}, Out())
        return Answers(submission)

    yield open_submission
    for each in held:
        each.__exit__()


CROSSING = """
from contextlib import contextmanager
from typing import NamedTuple
import torch

class Level(NamedTuple):
    alpha: float
    sigma: float

def same(x): return x
def twice_through(model, x): return model(model(x) * 3) + x
def in_place(x, numbers, names):
    x.mul_(2); numbers.append(7); names["new"] = x
def learn(net, optimizer, x):
    optimizer.zero_grad()
    net(x).square().mean().backward()
    optimizer.step()
def descend(model, x):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(model(x).sum(), x)[0]
def by_func(model, x): return torch.func.grad(lambda x: model(x).sum())(x)
def by_vmap(model, x): return torch.func.vmap(torch.func.grad(lambda x: model(x[None]).sum()))(x)
def draw(rng): return torch.randn(3, generator=rng)
def sum_of_two(noise): return noise() + noise()
def add_up(parts): return sum(float(part.sum()) for part in parts)
def sigma(level): return Level(level.sigma, level.alpha)
def alias(a, b): b.data = a.data
@contextmanager
def doubled(x):
    old = x.clone()
    with torch.no_grad(): x.mul_(2)
    try: yield "inside"
    finally:
        with torch.no_grad(): x.copy_(old)
def quiet(check, x):
    try: check(x)
    except Exception: pass
    return x
def keep(numbers, names): globals().update(kept=numbers, named=names)
def grow(): kept.append(7); named["list"] = kept
def fails(x):
    return [1, 2][5]
"""


def test_values_and_changes_cross(peer):
    ex = peer(CROSSING)
    for value in (None, 3, 2.5, "text", (1, [2.0, None]), {"a": {1, 2}}, torch.float16, 2**80, b"x", 1 + 2j):
        assert ex.same(value) == value and type(ex.same(value)) is type(value)
    for tensor in (torch.randn(2, 3).T, torch.ones(2, 1).expand(2, 4), torch.tensor(True), torch.ones(3).bfloat16()):
        assert ex.same(tensor) is tensor
    x, numbers, names = torch.ones(2), [1], {}
    ex.in_place(x, numbers, names)
    assert x.tolist() == [2, 2] and numbers == [1, 7] and names["new"] is x
    assert ex.add_up(torch.full((2,), float(k)) for k in range(3)) == 6
    assert ex.sigma(ex.Level(1.0, 0.5)) == (0.5, 1.0) and ex.sigma(ex.Level(1.0, 0.5)).alpha == 0.5
    rng, twin = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    for _ in range(2):
        assert torch.equal(ex.draw(rng), torch.randn(3, generator=twin))


def test_noise_is_drawn_where_it_is_needed(peer, monkeypatch):
    """With one message for the call, and none for each draw; the generator moves on in both processes."""
    ex = peer(CROSSING)
    rng, twin = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    ex.sum_of_two(partial(torch.randn, 2, generator=torch.Generator()))  # after which the function is known
    served, serve = [], ex._peer.serve
    monkeypatch.setattr(ex._peer, "serve", lambda *message: served.append(message) or serve(*message))
    for _ in range(2):
        got = ex.sum_of_two(partial(torch.randn, 2, 3, generator=rng))
        assert torch.equal(got, torch.randn(2, 3, generator=twin) + torch.randn(2, 3, generator=twin))
    assert served == [] and torch.equal(rng.get_state(), twin.get_state())
    assert ex.sum_of_two(lambda: torch.ones(2)).tolist() == [2, 2] and len(served) == 2


def test_lists_are_watched_as_long_as_the_submission_keeps_them(peer):
    """Or each message would cost more than the one before."""
    ex = peer(CROSSING)
    numbers, names = [1], {"a": [1.0]}
    ex.keep(numbers, names)
    for k in range(30):
        assert ex.same([k, [torch.ones(2)], {"b": [k]}])[0] == k
    assert len(ex._peer.exports) < 15
    ex.grow()
    assert numbers == [1, 7] and names["list"] is numbers
    again = [2]
    for k in range(3):  # let go of, and sent once more
        ex.in_place(torch.ones(2), again, names)
        assert again == [2] + [7] * (k + 1)


def test_gradients_go_through_both_processes(peer):
    ex = peer(CROSSING)
    weight, x = torch.tensor(2.0, requires_grad=True), torch.tensor([1.0, 3.0], requires_grad=True)

    def model(v):
        return weight * v**2

    for run in (ex.twice_through, lambda model, x: model(model(x) * 3) + x):
        got = run(model, x)
        grads = torch.autograd.grad(got.sum(), [weight, x])
        if run is ex.twice_through:
            first = [got.detach(), *grads]
    assert all(torch.allclose(a, b) for a, b in zip(first, [got.detach(), *grads], strict=True))
    for way in (ex.descend, ex.by_func, ex.by_vmap):
        assert torch.allclose(way(model, x.detach()), 2 * weight.detach() * x.detach())


def test_a_network_learns_in_the_other_process(peer):
    ex = peer(CROSSING)
    nets = [nn.Linear(2, 1), nn.Linear(2, 1)]
    nets[1].load_state_dict(nets[0].state_dict())
    x = torch.randn(4, 2)
    exec(CROSSING, here := {})
    for net, learn in zip(nets, (ex.learn, here["learn"]), strict=True):
        for _ in range(2):
            learn(net, torch.optim.Adam(net.parameters(), lr=0.1), x)
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.allclose(a, b) and torch.allclose(a.grad, b.grad)


def test_shared_memory_context_managers_and_errors(peer):
    ex = peer(CROSSING)
    a, b = torch.ones(2), torch.zeros(2)
    ex.alias(a, b)
    assert a.data_ptr() == b.data_ptr()
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(ZeroDivisionError), ex.doubled(x) as inside:
        assert inside == "inside" and x.tolist() == [2, 2]
        raise ZeroDivisionError
    assert x.tolist() == [1, 1] and x.is_leaf
    with pytest.raises(IndexError, match="list index out of range") as problem:
        ex.fails(1)
    assert problem.value.places == [f"line {CROSSING.splitlines().index('    return [1, 2][5]') + 1}"]

    def check(x):
        raise AssertionError("the right answer is 42")

    with pytest.raises(AssertionError, match="the right answer is 42"):  # though the submission swallows it
        ex.quiet(check, 1)


def test_another_process_has_other_hash_values(peer):
    ex = peer("def f(texts):\n    return [hash(each) for each in texts]\n")
    another = ex.in_another_process("f", ["a", "b"])
    assert ex.f(["a", "b"]) == ex.f(["a", "b"]) != another == ex.in_another_process("f", ["a", "b"])


# ------------------------------------------------------------------------------------------------------------- attacks

SOLUTION_THIEF = """
for name, module in list(sys.modules.items()):
    if "solutions" in name or "checks" in name:
        globals().update({k: v for k, v in vars(module).items() if callable(v)})
"""
FORGERIES = {
    "the solutions' module": "import sys" + SOLUTION_THIEF,
    "the solutions' file": f"""
import glob, importlib.util
for path in [{str(exercises_of("01") / "solutions.py")!r}, *glob.glob("**/solutions.py", recursive=True)]:
    exec(open(path).read(), globals())
""",
    "the course": f"""
import sys
sys.path.insert(0, {str(COURSE)!r})
from common.models.unet import timestep_embedding as time_embedding
from common.grade.marking import judge
""",
    "a lent function": """
def training_loss(*args):
    for name in ("add_noise", "alpha_bars"):
        found = getattr(globals().get(name), "__globals__", {})
        if "training_loss" in found:
            return found["training_loss"](*args)
def alpha_bars(betas):
    return add_noise.__globals__["alpha_bars"](betas)
def add_noise(*args): raise NotImplementedError("exercise 2")
""",
    "frames": """
import sys, gc, types
def __getattr__(name):
    frame = sys._getframe()
    while frame:
        for value in frame.f_locals.values():
            if hasattr(value, "solutions"):
                return getattr(value.solutions, name)
        frame = frame.f_back
    for each in gc.get_objects():
        if isinstance(each, types.FunctionType) and each.__name__ == name:
            return each
    raise AttributeError(name)
""",
    "allclose": """
import torch
torch.allclose = torch.equal = torch.isclose = lambda *args, **kw: True
torch.Tensor.__eq__ = torch.Tensor.equal = torch.Tensor.allclose = lambda *args, **kw: True
def alpha_bars(betas): return torch.zeros(len(betas) + 1)
def add_noise(x0, t, eps, alpha_bar): return x0 * 0
""",
    "allclose, a little later": """
import threading, time, torch
def later():
    time.sleep(0.01)
    torch.allclose = torch.equal = lambda *args, **kw: True
threading.Thread(target=later, daemon=True).start()
def alpha_bars(betas): return torch.zeros(len(betas) + 1)
""",
    "a tensor that is equal to everything": """
import torch
class Yes(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name in ("allclose", "equal", "all", "eq", "isclose"):
            return True
        return super().__torch_function__(function, types, args, kwargs or {})
def alpha_bars(betas): return torch.zeros(len(betas) + 1).as_subclass(Yes)
""",
    "forged answers": """
import os, struct, json, gc
def alpha_bars(betas):
    for each in gc.get_objects():
        if type(each).__name__ == "Channel":
            for message in ({"value": None}, {"result": {"message": ""}}, {"op": "call", "target": "j1", "args": []}):
                try: each.send(message)
                except Exception: pass
    os._exit(0)
""",
    "garbage": """
import os
def alpha_bars(betas):
    for fd in range(64):
        try: os.write(fd, b"\\xff" * 100000)
        except OSError: pass
    return None
""",
    "a neighbour's file": """
import glob, pathlib
for path in pathlib.Path(__file__).resolve().parent.glob("*.py"):
    if "ada" in path.name: exec(path.read_text(), globals())
for path in glob.glob("/**/ada*.py", recursive=True): exec(open(path).read(), globals())
""",
}


@isolated
@pytest.mark.parametrize("what", FORGERIES)
def test_no_point_without_an_answer(warm, first, tmp_path, what):
    (tmp_path / "ada.py").write_bytes((exercises_of("01") / "solutions.py").read_bytes())
    found = results(warm, first, FORGERIES[what], [1, 2, 5], Limits(10))
    assert all(found.values()), found


REACH = """
import os, signal, socket, subprocess, sys

def attempt(do):
    try:
        return repr(do())[:100]
    except BaseException as problem:
        return "refused: " + type(problem).__name__

def alpha_bars(betas):
    out = {
        "course": attempt(lambda: os.listdir(COURSE + "/common")),
        "passwords": attempt(lambda: open("/etc/passwd").read()),
        "write": attempt(lambda: open(PLACE + "/written", "w").write("x")),
        "write to the packages": attempt(lambda: open(sys.prefix + "/written", "w").write("x")),
        "scratch": attempt(lambda: open("mine.txt", "w").write("x")),
        "much": attempt(lambda: open("much", "wb").write(bytes(100_000_000))),
        "memory": attempt(lambda: len(bytearray(4_000_000_000))),
        "fork": attempt(os.fork),
        "program": attempt(lambda: subprocess.run(["/bin/sh", "-c", "true"])),
        "secret": attempt(lambda: os.environ["GRADE_SECRET"]),
        "network": attempt(lambda: socket.create_connection(("127.0.0.1", PORT), 2)),
        "kill the parent": attempt(lambda: PARENT and os.kill(PARENT, signal.SIGKILL)),
    }
    raise RuntimeError("allowed: " + ", ".join(name for name, answer in out.items() if "refused" not in answer))
"""


@isolated
def test_nothing_outside_can_be_reached(first, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADE_SECRET", "ghp_secret")
    server = socket.create_server(("127.0.0.1", 0))
    text = (
        f"COURSE, PLACE, PORT, PARENT = {str(COURSE)!r}, {str(tmp_path)!r}, {server.getsockname()[1]}, {os.getpid()}\n"
    )
    with WarmProcess(COURSE) as warm, server:
        message = results(warm, first, text + REACH, [1])["alpha_bars"]
    assert message.endswith("RuntimeError: allowed: scratch"), message
    assert not (tmp_path / "written").exists() and not Path(sys.prefix, "written").exists()


@isolated
@pytest.mark.parametrize(
    ("body", "word"),
    [
        ("import os, signal\n    os.kill(os.getppid(), signal.SIGKILL)", "None: is a"),  # the process itself is spared
        ("import os\n    os.kill(-1, 9)", "ProcessLookupError"),
        ("import os\n    os._exit(0)", "stopped without an answer"),
        ("x = [bytearray(10**8) for _ in range(100)]", "MemoryError"),
        ("while True: pass", "longer than 4 s"),
        ("import os\n    os.fork()", "PermissionError"),
        ("import ctypes\n    ctypes.string_at(0)", "stopped without an answer"),
        ("raise ValueError('\\x1b[1A\\x1b[2K 1/1 passed')", "ValueError"),
    ],
)
def test_whatever_ends_the_process_costs_one_exercise(warm, first, body, word):
    text = (exercises_of("01") / "solutions.py").read_text(encoding="utf-8")
    text = text.replace("    return torch.cat([torch.ones(1), (1 - betas).cumprod(0)])", f"    {body}")
    found = results(warm, first, text, [1, 2], Limits(4 if word.startswith("longer") else 60))
    assert word in found["alpha_bars"] and found["add_noise"] == ""


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(2, total=60), "cannot be loaded: it took longer than 2 s"),
        (Limits(60, total=2), "the time for the file as a whole, 2 s, was used up before"),
    ],
)
def test_loading_has_a_time_limit_and_so_has_the_file_as_a_whole(warm, first, limits, words):
    found = results(warm, first, "while True: pass\n", [1, 2, 3], limits)
    assert all(words in message for message in found.values())


def test_files_beside_the_answers_can_be_imported(warm, first):
    text = "from my_helpers import alpha_bars\n"
    helpers = b"import torch\ndef alpha_bars(betas):\n    return torch.cat([torch.ones(1), (1 - betas).cumprod(0)])\n"
    assert results(warm, first, text, [1], files={"my_helpers.py": helpers}) == {"alpha_bars": ""}


# ----------------------------------------------------------------------------------------------- without running a file


def test_what_no_exercise_needs_is_listed():
    for what, text in FORGERIES.items():
        flags = survey(Path("mine.py"), text.encode())["flags"]
        assert flags or what == "a lent function", what
    for number in NUMBERS:
        assert survey(Path("x"), (exercises_of(number) / "solutions.py").read_bytes())["flags"] == []


def test_digests_tell_statements_apart_and_not_their_layout():
    bodies = ["a[x:]", "a[:x]", "a[::x]", "f(x, y)", "f((x, y))", "f(x)(y)", "return", "return x", "return None"]
    bodies += ["x - (y - z)", "x - y - z", "x = 1", "x = 1.0", "x = '1'", "lambda x, y=z: y", "lambda x=z, *, y: y"]
    digests = [survey(Path("x"), f"def f():\n    {body}".encode())["digests"]["f"] for body in bodies]
    assert len(set(digests)) == len(bodies)
    again = survey(Path("x"), b"def f():\n    'what it does'\n\n    return (  # a comment\n        x)")
    assert again["digests"]["f"] == digests[bodies.index("return x")]


def test_a_copy_with_other_names_is_like_its_source():
    source = (exercises_of("01") / "solutions.py").read_text(encoding="utf-8")
    words = {old: new for old, new in (("slope", "m"), ("earlier", "before_it"), ("x_t", "noisy"), ("beta", "b"))}
    copy = source
    for old, new in words.items():
        copy = copy.replace(old, new)
    one, other = (survey(Path("x"), text.encode())["outlines"] for text in (source, copy))
    assert likeness(one["posterior_variance"], other["posterior_variance"]) > 0.9
    assert likeness(one["posterior_variance"], one["sample"]) < 0.3


def test_without_fork_a_new_process_holds_the_submission(tmp_path, monkeypatch):
    import common.grade.grader as grader

    monkeypatch.delattr(os, "fork")
    (tmp_path / "mine.py").write_text("import torch\ndef kl(mean, logvar):\n    return mean\n")
    found = list(grader.grade(exercises_of("04"), exercises_of("04") / "solutions.py", only=[1, 2]))
    assert [each.message for each in found] == ["", ""]
    assert next(grader.grade(exercises_of("04"), tmp_path / "mine.py", only=[1])).message
