"""The settings of a training run: presets fill what was left open, and --resume finds everything in the run folder.

`args` is the frozen dataclass of a chapter's train.py. It has the fields data, steps, minutes, out, resume, device and threads.
"""

import typing
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from common.cli import free_folder, is_main_process, pick_device, use_threads
from common.errors import UserError, shown
from common.files import read_json
from common.model_folder import find_root, unet_folder
from common.ranges import check_saved

Args = TypeVar("Args")


def one_budget(args: Any) -> None:
    """Refuse both budgets at once."""
    if args.steps is not None and args.minutes is not None:
        raise UserError("give the budget either as --steps or as --minutes, not both")


OTHER = None  # in Presets: data without a name of their own, such as a folder of images


@dataclass(frozen=True)
class Presets:
    """The defaults of a training for each kind of device: a preset (any dataclass) for each data set, and one for OTHER data."""

    cpu: dict[Any, Any]  # two CPU cores
    mps: dict[Any, Any]  # an Apple laptop with 8 GB of memory for everything; estimated from the memory of a training step, not measured
    gpu: dict[Any, Any]  # one recent GPU (CUDA)

    def of(self, data: Any, device: str) -> Any:
        """The preset of this data set on this device, as pick_device names it."""
        presets = {"cuda": self.gpu, "mps": self.mps}.get(device.partition(":")[0], self.cpu)
        return presets.get(data, presets[OTHER])


def with_preset(args: Args, presets: Presets) -> Args:
    """Fill what was left open (None) from the preset of the data set, for this kind of device."""
    preset = presets.of(args.data, pick_device(args.device))
    open_flags = {f.name for f in fields(preset) if getattr(args, f.name) is None}
    if args.steps is not None:
        open_flags.discard("minutes")
    return replace(args, **{name: getattr(preset, name) for name in open_flags})


def with_build(args: Args) -> Args:
    """Where no widths are given, take those of the U-Net that the run starts from (args.start)."""
    if args.channels is not None or args.start is None:
        return args
    path = unet_folder(find_root(args.start)) / "config.json"
    widths = read_json(path).get("block_out_channels")
    if not isinstance(widths, list) or not widths or not all(type(width) is int and width > 0 for width in widths):
        raise UserError(f"{path} does not say how wide its U-Net is: block_out_channels is {shown(widths)}, where a list of whole numbers was expected")
    return replace(args, channels=tuple(widths))


def with_folder(args: Args, chapter: str) -> Args:
    """Choose the run folder where none is given; a folder that holds a run already is refused."""
    folder = args.out or free_folder(Path("runs") / chapter / Path(args.data).name)
    if is_main_process() and (folder / "config.json").exists():
        raise UserError(f"{folder} already holds a run; continue it with --resume {folder}, or choose another --out")
    return replace(args, out=folder, threads=args.threads or threads_used())


def threads_used() -> int:
    """The number of threads that torch computes with. A resumed run is bit-equal only with the same number."""
    import torch

    return torch.get_num_threads()


def same_threads(threads: int | None, saved: int | None) -> int:
    """The number of threads of a resumed run: `threads` where the command gives it, else the number that the run began with.

    A line says so where the number differs from the run's, or from this machine's default.
    """
    chosen, usual = threads or saved or threads_used(), threads_used()
    if is_main_process():
        if saved not in (None, chosen):
            print(f"the run began with {saved} threads and goes on with {chosen}; its weights may differ in the last digits from those of an uninterrupted run")
        elif chosen != usual:
            print(f"the run began with {saved} threads and goes on with as many; by default this machine takes {usual} (--threads {usual})")
    use_threads(chosen)
    return chosen


def resumed(args: Args) -> Args:
    """The settings of the run in args.resume, with this command's device, and its budget and threads where they are given."""
    path, kinds = args.resume / "config.json", typing.get_type_hints(type(args))
    saved = read_json(path)
    if unknown := saved.keys() - kinds.keys():
        raise UserError(f"{path} has settings this program does not know: {', '.join(sorted(unknown))}")
    if missing := {f.name for f in fields(args) if saved.get(f.name) is None and f.name in ("channels", "data_dir")}:
        raise UserError(f"{path} holds no settings of a run: {', '.join(sorted(missing))} is missing")
    old = type(args)(**{name: from_json(value, kinds[name]) for name, value in saved.items()})
    check_saved(old, path)
    budget = {"steps": args.steps, "minutes": args.minutes} if args.steps or args.minutes else {}
    threads = same_threads(args.threads, old.threads)
    return replace(old, out=args.resume, resume=args.resume, device=args.device, threads=threads, **budget)


def from_json(value: Any, kind: Any) -> Any:
    """JSON knows neither tuples nor paths."""
    if isinstance(value, list):
        return tuple(value)
    return Path(value) if isinstance(value, str) and Path in (kind, *typing.get_args(kind)) else value
