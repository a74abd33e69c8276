"""Call every program with bad input, and look for tracebacks, wrong exit codes, and work without an announced end.

  python tests/robustness/fuzz/run.py --n 2000                      all programs, some thousand calls
  python tests/robustness/fuzz/run.py --n 200 --seed 3 --only make_gif
  python tests/robustness/fuzz/run.py --replay 17 --n 2000          only call number 17 of these, with its whole output

A call is a valid one (calls.py) with one or two flags changed: numbers out of range, NaN, infinity, empty and endless
texts, text that is no Unicode, and files that are damaged, hostile or not there (inputs.py). Each runs in a child of a
process that has loaded all libraries already, in an empty folder, with limits of memory and time. The verdicts:

  refused    exit code 2, the last line of the errors is the only one that begins with "error:" (or the flag parser's
             box)
  accepted   exit code 0, and what --out names is there
  announced  it was ended, but a progress bar had said how long it would take
  fault      everything else
"""

import contextlib
import importlib
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import types
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1]), str(HERE.parents[2])]  # this folder, tests/, the course

os.environ |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_DISABLE_TELEMETRY": "1"}  # no call leaves this machine

import common  # noqa: E402, F401 - its settings must precede torch

# isort: split
import calls as fuzz  # noqa: E402
import inputs  # noqa: E402
import torch  # noqa: E402

from helpers.programs import ROOT, load_program  # noqa: E402

CPU_SECONDS, SECONDS = 30, 120  # of a call, before it must have announced its end
MEMORY = 12 * 2**30
LIBRARIES = [
    "tyro",
    "accelerate",
    "accelerate.state",
    "diffusers",
    "transformers",
    "peft",
    "compel",
    "denoising_diffusion_pytorch",
    "datasets",
    "lmdb",
    "matplotlib.figure",
    "matplotlib.pyplot",
    "PIL.Image",
    "imageio_ffmpeg",
    "sklearn.datasets",
    "torchvision.transforms.v2",
    "torch.utils.tensorboard",
    "safetensors.torch",
    "tokenizers",
    "scipy.linalg",
    "scipy.ndimage",
    "torchmetrics",
    "diffusers.pipelines.stable_diffusion",
    "transformers.models.clip",
    "transformers.models.chinese_clip",
    "torch._dynamo",
    "common.training.loop",
    "common.training.logging",
    "common.viz",
    "common.evaluate",
    "common.training.checkpoint",
    "common.models.text_to_image_folder",
    "common.training.latents",
    "common.models.vae",
    "common.models.text.encoders",
    "common.data.registry",
    "common.data.sources.lmdb_dataset",
    "common.evaluate.creature_classifier",
    "common.evaluate.digit_classifier",
    "common.training.settings",
    "common.training.flags",
    "common.grade.notebook",
    "common.grade.checks",
]
DIFFUSERS = [
    "StableDiffusionPipeline",
    "AutoPipelineForImage2Image",
    "AutoPipelineForInpainting",
    "AutoPipelineForText2Image",
    "StableDiffusionControlNetPipeline",
    "ControlNetModel",
    "DDPMScheduler",
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "UNet2DConditionModel",
    "UNet2DModel",
    "AutoencoderKL",
    "DDPMPipeline",
]


@dataclass(frozen=True)
class Outcome:
    verdict: str
    reason: str
    seconds: float
    output: str


def warm() -> None:
    """Load what children would else load again, each for itself."""
    torch.set_num_threads(1)
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    diffusers = importlib.import_module("diffusers")
    for name in DIFFUSERS:
        getattr(diffusers, name)


def run_child(program: str, words: tuple[str, ...], folder: Path, limited: bool = True) -> tuple[int, str, str, float]:
    """(exit code, stdout, stderr, seconds). The code is -9 where the child used up its time."""
    folder.mkdir(parents=True, exist_ok=True)
    if limited:  # what a program may find where it is to write
        (folder / "old").mkdir()
        for name in ("old.png", "old.json", "old.gif", "old/old.txt"):
            (folder / name).write_text("old")
    out, err, began = folder.parent / "stdout", folder.parent / "stderr", time.monotonic()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        be_the_program(program, words, folder, out, err, limited)
    code = wait(child, SECONDS if limited else 600)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what the program has started
    return code, *(path.read_text(encoding="utf-8", errors="replace") for path in (out, err)), time.monotonic() - began


def be_the_program(program: str, words: tuple[str, ...], folder: Path, out: Path, err: Path, limited: bool) -> None:
    """What the child does; it never returns."""
    code = 1
    try:
        os.setsid()
        for path, number in ((out, 1), (err, 2)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in ((1, "stdout"), (2, "stderr")):
            setattr(
                sys, name, open(number, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
            )
        if limited:
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**30, 2**30))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        if os.geteuid() == 0:
            be_an_ordinary_user(folder.parent)
        os.chdir(folder)
        sys.argv = [program, *words]
        if program.startswith("0"):
            sys.path.insert(0, str((ROOT / program).parent))  # as `python program` does
        # processes that the program starts look for it there
        sys.modules["__main__"] = sys.modules["__mp_main__"] = module = types.ModuleType("__main__")
        module.__file__ = str(ROOT / program)
        exec(compile((ROOT / program).read_bytes(), str(ROOT / program), "exec"), module.__dict__)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def be_an_ordinary_user(scratch: Path) -> None:
    """Permissions mean nothing to root, so the functions that open and change files say no themselves: nothing is read
    below a folder or file named denied, and nothing is written outside the scratch folder."""
    import builtins
    import io

    (scratch / "tmp").mkdir(exist_ok=True)
    os.environ["TMPDIR"] = tempfile.tempdir = str(scratch / "tmp")
    shutil._use_fd_functions = False  # rmtree by paths, which can be checked
    mine = (os.path.realpath(scratch), "/dev/shm", "/dev/full", "/dev/null", "/proc/self/fd")

    def checked(function, changes: bool):
        def call(path=".", *args, **kwargs):
            for name in (path, *args[:1]):
                if isinstance(name, (str, bytes, os.PathLike)) and (place := os.fsdecode(name)) not in MODES:
                    writes = changes or (function in (opens, os_open) and wants_to_write(args, kwargs))
                    if "/denied" in place or (writes and not os.path.realpath(place).startswith(mine)):
                        raise PermissionError(13, "Permission denied", place)
                    if changes and place.startswith("/dev/"):
                        raise PermissionError(13, "Permission denied", place)
            return function(path, *args, **kwargs)

        return call

    opens, os_open = builtins.open, os.open
    for where, name, changes in (
        (builtins, "open", False),
        (io, "open", False),
        (os, "open", False),
        (os, "listdir", False),
        (os, "scandir", False),
        *(
            (os, name, True)
            for name in ("rename", "replace", "unlink", "remove", "mkdir", "rmdir", "symlink", "link", "mkfifo")
        ),
    ):
        setattr(where, name, checked(getattr(where, name), changes))


MODES = {"r", "w", "a", "x", "rb", "wb", "ab", "xb", "r+", "rb+", "r+b", "w+", "wb+", "w+b", "rt", "wt"}


def wants_to_write(args: tuple, kwargs: dict) -> bool:
    mode = kwargs.get("mode", args[0] if args else "r")
    return (
        bool(mode & (os.O_WRONLY | os.O_RDWR))
        if isinstance(mode, int)
        else isinstance(mode, str) and bool(set(mode) & set("wax+"))
    )


def wait(child: int, seconds: float) -> int:
    """The exit code of a child, or -9 where it was ended."""
    ended = False

    def end(*_):
        nonlocal ended
        ended = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        _, status = os.waitpid(child, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    code = os.waitstatus_to_exitcode(status)
    return -9 if ended or code in (-signal.SIGKILL, -signal.SIGXCPU) else code


def verdict_of(call: fuzz.Call, code: int, out: str, err: str, folder: Path) -> tuple[str, str]:
    """(verdict, reason)"""
    lines = [line for line in re.split(r"[\n\r]", err) if line.strip()]
    said = [line for line in lines if line.startswith("error: ")]
    if "Traceback (most recent call last)" in err:
        return "fault", "traceback: " + lines[-1][:200]
    if code == -9:
        bars = [
            line
            for line in lines[-3:]
            if re.search(r"\d+%\|.*\[\d[\d:]*<\d[\d:]*", line) or re.search(r"\d+%\|.*\| \d[\d:]*", line)
        ]
        return ("announced", bars[-1][:100]) if bars else ("fault", "works on without an announced end")
    if code == 2 and "╭" in err and not said:
        return "refused", "by the flag parser"
    if code == 2:
        if len(said) == 1 and lines[-1] == said[0] and len(said[0]) < 2000:
            return "refused", said[0][:200]
        return "fault", f"exit code 2 with {len(said)} sentences: {(lines or [''])[-1][:200]}"
    if code != 0:
        return "fault", f"exit code {code}: {(lines or [''])[-1][:200]}"
    if call.must_refuse and not {"--help", "-h"} & set(call.words):
        return "fault", "accepted what must be refused"
    # these write something else, or nothing
    if {"--list", "--dry", "--ask", "--use", "--by-hand-only"} & set(call.words):
        return "accepted", ""
    if call.out and not (folder / call.out.replace("IN/", f"{folder.parent.parent}/in/")).exists():
        return "fault", f"accepted, but {call.out} is not there"
    return "accepted", ""


def prepare(root: Path) -> Path:
    """The folder of inputs, made once."""
    folder = root / "in"
    folder.mkdir()

    def complete(program: str, *words: str) -> None:
        code, out, err, _ = run_child(program, words, folder, limited=False)
        if code != 0:
            raise SystemExit(f"a valid call failed: {program} {' '.join(words)}\n{out}\n{err}")

    inputs.write_valid(folder, complete)
    inputs.write_hostile(folder / "hostile")
    return folder


def programs() -> dict[str, type]:
    """The Args of every program: each file that hands its own main to common.cli.run."""
    paths = [
        path
        for part in ("0*_*", "common", "bench")
        for path in sorted(ROOT.glob(f"{part}/**/*.py"))
        if "run(main, Args)" in path.read_text(encoding="utf-8")
    ]
    return {str(path.relative_to(ROOT)): load_program(str(path.relative_to(ROOT))).Args for path in paths}


def attempt(call: fuzz.Call, root: Path, number: int) -> Outcome:
    place = root / f"call-{number}"
    words = tuple(
        word.replace("IN/", f"{root}/in/")
        if word.startswith("IN") and word != "IN"
        else f"{root}/in"
        if word == "IN"
        else word
        for word in call.words
    )
    code, out, err, seconds = run_child(call.program, words, place / "here", limited=True)
    verdict, reason = verdict_of(call, code, out, err, place / "here")
    shutil.rmtree(place, ignore_errors=True)
    return Outcome(verdict, reason, seconds, out + err)


def main() -> int:
    import argparse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=2000, help="number of calls")
    parser.add_argument("--seed", type=int, default=0, help="the same seed makes the same calls")
    parser.add_argument("--only", default="", help="part of the names of the programs to call")
    parser.add_argument("--log", type=Path, default=None, help="file for one line a call")
    parser.add_argument(
        "--replay", type=int, default=None, help="number of a call of the log, which is made again and shown"
    )
    args = parser.parse_args()
    warm()
    return fuzz_all(args.n, args.seed, args.only, args.log, args.replay)


def fuzz_all(n: int, seed: int, only: str = "", log: Path | None = None, replay: int | None = None) -> int:
    """Make the calls and print a table. Returns the number of faults."""
    known = programs()
    missing = known.keys() - fuzz.VALID.keys() - fuzz.REFUSALS.keys()
    if missing:
        raise SystemExit(f"tests/robustness/fuzz/calls.py has no valid call of {', '.join(sorted(missing))}")
    counts, faults = Counter(), []
    file = open(log, "w", encoding="utf-8", errors="backslashreplace") if log else None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        root = Path(name)
        hostile = fuzz.hostile_words(prepare(root) / "hostile")
        made = fuzz.calls(n, seed, {path: args for path, args in known.items() if only in path}, hostile)
        for number, call in enumerate(made):
            if replay is not None and number != replay:
                continue
            outcome = attempt(call, root, number)
            counts[call.program, outcome.verdict] += 1
            line = f"{number} {outcome.verdict} {outcome.seconds:.1f}s {call.program} [{call.why}] {outcome.reason}".replace(
                "\n", "\\n"
            ).replace(str(root), "ROOT")
            if file:
                print(line, file=file, flush=True)
            if outcome.verdict == "fault":
                faults.append(line)
                print(line.encode("utf-8", "backslashreplace").decode(), flush=True)
            if replay is not None:
                print(repr(call.words), outcome.output, sep="\n")
    print(table(counts))
    return len(faults)


def table(counts: Counter) -> str:
    verdicts = ("refused", "accepted", "announced", "fault")
    rows = [f"{'program':46}" + "".join(f"{verdict:>11}" for verdict in verdicts)]
    for program in sorted({program for program, _ in counts}):
        rows.append(f"{program:46}" + "".join(f"{counts[program, verdict]:>11}" for verdict in verdicts))
    rows.append(
        f"{'all ' + str(sum(counts.values())):46}"
        + "".join(f"{sum(counts[program, v] for program, v in counts if v == verdict):>11}" for verdict in verdicts)
    )
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(min(1, main()))
