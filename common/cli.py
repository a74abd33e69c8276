"""The command line's manners: typed flags, one clear sentence for bad input, --help in under a second.

Nothing heavy is imported at the top: torch waits until a command really runs.
"""

import importlib.metadata
import math
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from common.encoding import restart_in_utf8
from common.errors import UserError

Args = TypeVar("Args")
TORCHVISION_FOR = {"2.10": "0.25", "2.11": "0.26", "2.12": "0.27"}  # pairs that were built for each other


def run(main: Callable[[Args], None], args_type: type[Args]) -> None:
    """Read the flags into args_type and call main(args). A UserError prints its sentence and exits with code 2."""
    import tyro

    restart_in_utf8()
    try:
        args = tyro.cli(args_type, description=sys.modules[main.__module__].__doc__)
        warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
        check_versions()
        check_seed(getattr(args, "seed", None))
        main(args)
    except UserError as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # output piped into `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def check_versions() -> None:
    """torchvision must be the release built for this torch, or importing it fails with an obscure message."""
    torch, vision = (importlib.metadata.version(name).split("+")[0] for name in ("torch", "torchvision"))
    wanted = TORCHVISION_FOR.get(".".join(torch.split(".")[:2]))
    known = set(TORCHVISION_FOR.values())
    vision_short = ".".join(vision.split(".")[:2])
    if (wanted and vision_short != wanted) or (not wanted and vision_short in known):
        raise UserError(
            f"torch {torch} and torchvision {vision} were not built for each other; "
            "install the pair that the course is tested with: pip install -r requirements.txt"
        )


def check_seed(seed: object) -> None:
    """What every generator of random numbers here can begin with."""
    if isinstance(seed, int) and not 0 <= seed < 2**63:
        raise UserError(f"--seed must be 0 or more and have at most 18 digits, not {seed}")


def is_main_process() -> bool:
    """Whether this is the process that writes and prints; torchrun numbers the processes in RANK."""
    return os.environ.get("RANK", "0") == "0"


def pick_device(name: str) -> str:
    """auto -> cuda, mps or cpu; anything else is checked."""
    import torch

    if name == "auto":  # a process that torchrun started is told its GPU by accelerate
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).cpu()  # "meta" computes nothing
        if name.startswith("cuda:"):
            torch.cuda.set_device(name)
    except (RuntimeError, AssertionError, NotImplementedError) as problem:
        raise UserError(f"there is no device '{name}' on this machine; use --device auto or cpu") from problem
    return name


def pick_precision(name: str, device: str) -> str:
    """auto -> bf16 where the device computes it natively, else no. (Emulated on an older CPU it is 20 times slower.)"""
    import torch

    if name != "auto":
        return name
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device == "cpu" and torch.cpu._is_avx512_bf16_supported() else "no"


def positive(**values: float | None) -> None:
    """Refuse numbers that must be above zero, and finite, naming the flag."""
    for flag, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{flag.replace('_', '-')} must be above 0{' and finite' if value == math.inf else ''}, not {value}")


def gif_beside(out: Path, gif: bool) -> None:
    """Refuse a name under which the grid and the moving picture would be the same file."""
    if gif and out.suffix.lower() == ".gif":
        raise UserError(f"--gif writes {out} itself, beside the grid; end --out in .png")


def writable_folder(folder: Path) -> Path:
    """Make the folder, or say why that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as problem:
        raise UserError(f"cannot write to {folder} ({problem.strerror}); choose another folder with --out") from problem
    return folder


def free_folder(wanted: Path) -> Path:
    """The folder itself while it is new or empty, else name-2, name-3, ...: no earlier run is ever overwritten."""
    number, folder = 1, wanted
    while folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder
