"""Command lines: typed flags, one clear sentence for bad input, --help in under a second.

Nothing heavy is imported at the top: torch waits until a command really runs.
"""

import importlib.metadata
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from common.errors import UserError, explain, printable, sentence
from common.io.files import keep_files
from common.io.process import has_surrogates, restart_in_utf8
from common.io.ranges import check_numbers

Args = TypeVar("Args")
TORCHVISION_FOR = {"2.10": "0.25", "2.11": "0.26", "2.12": "0.27"}  # pairs that were built for each other


def run(main: Callable[[Args], None], args_type: type[Args]) -> None:
    """Read the flags into args_type and call main(args). A UserError prints its sentence and exits with code 2.

    So does what fails outside the program (errors.sentence);
    every other exception is a fault of the program and keeps its traceback.
    """
    restart_in_utf8()
    try:
        args = parse(args_type, sys.argv[1:], sys.modules[main.__module__].__doc__)
        warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
        check_versions()
        if hasattr(args, "threads"):
            use_threads(args.threads if args.threads is not None else free_threads())
        main(args)
        sys.stdout.flush()
    except UserError as problem:
        fail(str(problem))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # output piped into `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as problem:
        message = sentence(problem, lowered(args_type))
        if message is None:
            raise
        fail(message)


def fail(message: str) -> NoReturn:
    """Print the one sentence and end with code 2."""
    try:
        sys.stdout.flush()
    except OSError as problem:
        # a full disk, where the output goes: Python would complain about it once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        message = f"cannot write to standard output ({problem.strerror})"
    print(f"error: {printable(message)}", file=sys.stderr)
    sys.exit(2)


def parse(args_type: type[Args], argv: Sequence[str], description: str | None = None) -> Args:
    """The flags as args_type. Refused is what no program can use:
    texts that are no Unicode, numbers out of range, one file twice.

    The attribute `given` of the result names the flags that the command line has:
    a default that is typed out is given, too.
    """
    import tyro

    argv = [home_expanded(word) for word in argv]
    check_texts(argv)
    args: Any = tyro.cli(args_type, args=list(argv), description=indent_commands(description))
    check_paths(args, argv)
    check_numbers(args)
    named = {word[2:].split("=")[0].replace("-", "_") for word in argv if word.startswith("--")}
    object.__setattr__(
        args, "given", frozenset(field.name for field in fields(args) if {field.name, f"no_{field.name}"} & named)
    )
    return args


def indent_commands(description: str | None) -> str | None:
    """The description with its examples indented, because tyro fills every other line of a paragraph up to the next."""
    return description and re.sub(r"^python ", "  python ", description, flags=re.MULTILINE)


def home_expanded(word: str) -> str:
    """~/x and --flag=~/x with the home directory in place of ~, as a shell does it:
    bash not behind =, Windows never.
    """
    flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return flag + equals + (os.path.expanduser(value) if value.startswith(("~/", "~\\")) else value)


def check_texts(argv: Sequence[str]) -> None:
    """Refuse arguments with lone surrogates: bytes that are no text in this system's encoding."""
    for number, word in enumerate(argv, 1):
        if has_surrogates(word):
            raise UserError(
                f"argument {number} is no text in this system's encoding ({printable(word)}); type it again, or use a UTF-8 locale"
            )


OUTPUTS = ("out", "keep", "json", "sheet", "table")  # flags that name what is written; every other path is an input
# ... but these, which a program reads and writes
NOT_INPUTS = (*OUTPUTS, "resume", "data_dir", "cache", "lab", "weights")
BESIDE = ("--gif", "--npy")  # flags that write another file beside --out, which ends in their name
FOLDERS = ("data", "subject")  # input folders that nothing may be written into: it would be taken for data


def check_paths(args: Any, argv: Sequence[str]) -> None:
    """Refuse an empty path, and an output that would replace an input or another output."""
    values = {field.name: getattr(args, field.name) for field in fields(args)}
    flag = {name: "--" + name.replace("_", "-") for name in values}
    for name, value in values.items():
        if value == Path() and "" in argv and "." not in argv:
            raise UserError(f"{flag[name]} is empty; name a file or a folder")
    writes = {flag[name]: values[name] for name in OUTPUTS if isinstance(values.get(name), Path)}
    if isinstance(out := values.get("out"), Path) and out.name:
        writes |= {name: out.with_suffix(f".{name[2:]}") for name in BESIDE if values.get(name[2:]) is True}
    reads = {
        path: flag[name]
        for name, value in values.items()
        if name not in NOT_INPUTS
        for path in map(real, value if isinstance(value, tuple) else (value,))
        if path and (path.is_file() or name in FOLDERS)
    }
    keep_files(reads)
    for name, path in writes.items():
        check_writable(path, name)
    taken = dict(reads)
    for name, path in writes.items():
        if (other := taken.setdefault(Path(os.path.realpath(path)), name)) != name:
            raise UserError(
                f"{name} would write over {path}, which {other} names; choose another {'--out' if name in BESIDE else name}"
            )


def check_writable(path: Path, flag: str) -> None:
    """Refuse a name that cannot be written, before any work is done for what is to be written there."""
    target = Path(os.path.realpath(path))
    if long := next((part for part in target.parts if len(os.fsencode(part)) > LONGEST_NAME), None):
        raise UserError(
            f"{flag} has a name of {len(long)} characters, {long[:20]}..., which is too long for a file; choose a shorter one"
        )
    existing = next(parent for parent in (target, *target.parents) if os.path.lexists(parent))
    if existing != target and not existing.is_dir():
        raise UserError(
            f"cannot write to {path} ({existing} is a file, no folder that can be written to); choose another place with {flag}"
        )
    if not os.access(existing, os.W_OK):
        raise UserError(f"cannot write to {path} (you may not write to {existing}); choose another place with {flag}")


LONGEST_NAME = 255 - len(".partial")  # bytes, on every file system in use


def real(path: object) -> Path | None:
    """Where a path leads; None where that is nothing."""
    try:
        return Path(path).resolve() if isinstance(path, (str, Path)) and str(path) and os.path.lexists(path) else None
    except (OSError, ValueError, RuntimeError):  # longer than any name, or a loop of links
        return None


def check_versions() -> None:
    """torchvision must be the release built for this torch, or importing it fails with an obscure message."""
    try:
        torch, vision = (importlib.metadata.version(name).split("+")[0] for name in ("torch", "torchvision"))
    except importlib.metadata.PackageNotFoundError as problem:
        raise UserError(
            f"{sys.executable} has no package {problem.name}; run the Python of .venv, or install the course (README.md)"
        ) from None
    torch_release, vision_release = (".".join(version.split(".")[:2]) for version in (torch, vision))
    known = torch_release in TORCHVISION_FOR or vision_release in TORCHVISION_FOR.values()
    if known and TORCHVISION_FOR.get(torch_release) != vision_release:
        raise UserError(
            f"torch {torch} and torchvision {vision} were not built for each other; "
            "install the pair that the course is tested with: pip install -r requirements.txt"
        )


def use_threads(threads: int | None) -> None:
    """Let torch compute with this many threads on the CPU;
    None leaves it at OMP_NUM_THREADS, or one thread for each core.

    The variable is set as well: NumPy's and SciPy's libraries read it when they are loaded, and so do the processes
    started here. (torch's data workers compute with one thread each, whatever it says.)
    """
    if threads is None:
        return
    os.environ["OMP_NUM_THREADS"] = str(threads)
    # on loading, torch takes the variable's number, but no more than there are cores
    if "torch" in sys.modules or threads > (os.cpu_count() or 1):
        import torch

        torch.set_num_threads(threads)


def free_threads(seconds: float = 0.2) -> int | None:
    """One thread for each core that no other program uses,
    where some are used and OMP_NUM_THREADS leaves the choice open.

    A thread that shares its core with another program delays all others: on two cores beside one busy process, a
    training step of chapter 1 takes twice as long with two threads as with one (python -m bench.busy).
    """
    if "OMP_NUM_THREADS" in os.environ:
        return None
    import psutil

    cores = psutil.cpu_count() or 1
    free = max(1, round(cores * (1 - psutil.cpu_percent(seconds) / 100)))
    if free >= cores:
        return None
    if is_main_process():
        print(
            f"note: other programs keep {cores - free} of {cores} cores busy, "
            f"so torch computes with {free} thread{'s' * (free > 1)} (--threads {cores} uses all)",
            file=sys.stderr,
        )
    return free


def is_main_process() -> bool:
    """Whether this is the process that writes and prints; torchrun numbers the processes in RANK."""
    return os.environ.get("RANK", "0") == "0"


def pick_device(name: str) -> str:
    """auto -> cuda, mps or cpu; anything else is checked.
    In a process of torchrun, "cuda" is the GPU with its number.
    """
    import torch

    auto, local = name == "auto", os.environ.get("LOCAL_RANK", "")
    if auto:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name.startswith("cuda:") and local:
        raise UserError(
            f"torchrun gives each process a GPU of its own, so --device cannot be {name}; use --device cuda"
        )
    if name == "cuda" and local.isdecimal() and torch.cuda.is_available():
        if int(local) >= torch.cuda.device_count():
            raise UserError(
                f"torchrun started process {local} on a machine with {torch.cuda.device_count()} GPUs, counted from 0; lower --nproc_per_node"
            )
        torch.cuda.set_device(int(local))  # as accelerate does later: what is loaded before that must not go to GPU 0
    try:
        torch.zeros(1, device=name).cpu()  # "meta" computes nothing
        if name.startswith("cuda:"):
            torch.cuda.set_device(name)
    except (RuntimeError, AssertionError, NotImplementedError) as problem:
        unknown = "device type at start of device string" in str(problem)  # torch lists all the types there are
        reason = f"the device '{name}' cannot be used ({'there is no such type' if unknown else explain(problem)})"
        if not auto:
            raise UserError(f"{reason}; use --device auto or cpu") from problem
        # a virtual Mac says that it has MPS, and gives no memory
        warnings.warn(f"{reason}; computing on the CPU", stacklevel=2)
        return "cpu"
    return name


def pick_precision(name: str, device: str) -> str:
    """auto -> bf16 where the device computes it natively, else no.
    (Emulated on an older CPU it is 20 times slower.)
    """
    import torch

    if name != "auto":
        return name
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device == "cpu" and torch.cpu._is_avx512_bf16_supported() else "no"


def lowered(args_type: type) -> str:
    """What to try where memory is short: the flags of this program that memory depends on."""
    names = [field.name for field in fields(args_type)]
    less = [f"--{name.replace('_', '-')}" for name in ("batch_size", "size", "n", "channels") if name in names]
    more = [f"--{name.replace('_', '-')}" for name in ("checkpointing", "low_memory") if name in names]
    return " or ".join([", ".join(less)] * bool(less) + [f"give {flag}" for flag in more])


def writable_folder(folder: Path) -> Path:
    """Make the folder, or say why that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as problem:
        raise UserError(
            f"cannot write to {folder} ({problem.strerror}); choose another folder with --out"
        ) from problem
    return folder


def free_folder(wanted: Path) -> Path:
    """The folder itself while it is new or empty, else name-2, name-3, ...: no earlier run is ever overwritten."""
    number, folder = 1, wanted
    while folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder
