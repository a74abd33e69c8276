"""The settings of a run. settle() completes the flags of a new run,
or finds all settings of a run to resume in its folder.
"""

import os
import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from common.cli import free_folder, is_main_process, pick_device, use_threads
from common.errors import UserError, shown
from common.io.files import read_json
from common.io.ranges import check_saved
from common.models.find_model import find_root, unet_folder
from common.training.flags import RunFlags, TrainingFlags, UNetFlags

Run = TypeVar("Run", bound=RunFlags)
Training = TypeVar("Training", bound=TrainingFlags)
WithUNet = TypeVar("WithUNet", bound=UNetFlags)

OTHER = None  # in Presets: data without a name of their own, such as a folder of images
FREE = (  # flags that can be given beside --resume: they do not change what is learned
    "device", "threads", "workers", "steps", "minutes", "save_every", "sample_every",
    "sampler", "scheduler", "sample_steps", "guidance", "prompts", "names", "samples", "measure",  # the sample pictures
    "data", "data_dir", "cache", "subject",  # places: the images in them are compared with those of the run (common/training/record.py)
)  # fmt: skip


@dataclass(frozen=True)
class Presets:
    """The defaults of a training for each kind of device:
    a preset (any dataclass) for each data set, and one for OTHER data.
    """

    cpu: dict[Any, Any]  # two CPU cores
    # an Apple laptop with 8 GB of memory for everything; estimated from the memory of a training step, not measured
    mps: dict[Any, Any]
    gpu: dict[Any, Any]  # one recent GPU (CUDA)

    def of(self, data: str | tuple[str, ...], device: str) -> Any:
        """The preset of this data set on this device, as pick_device names it."""
        presets = {"cuda": self.gpu, "mps": self.mps}.get(device.partition(":")[0], self.cpu)
        return presets.get(data, presets[OTHER])


def settle(args: Training, presets: Presets, folder: str, free: Sequence[str] = FREE) -> Training:
    """All settings of a run: those in the folder of --resume, or the flags with presets where they were left open.

    folder  the run folder below runs/, where --out gives none; numbered if it is taken
    free    flags that may be given beside --resume
    """
    if args.steps is not None and args.minutes is not None:
        raise UserError("give the budget either as --steps or as --minutes, not both")
    return resumed(args, free) if args.resume else with_folder(with_preset(args, presets), folder)


def with_preset(args: Training, presets: Presets) -> Training:
    """Fill what was left open (None) from the preset of the data set, for this kind of device."""
    preset = presets.of(args.data, pick_device(args.device))
    open_flags = {f.name for f in fields(preset) if getattr(args, f.name) is None}
    if args.steps is not None:
        open_flags.discard("minutes")
    return replace(args, **{name: getattr(preset, name) for name in open_flags})


def with_auto_data(args: Training) -> Training:
    """The data set "auto" of a new run: MNIST, from a local copy or a download, else the embedded part of it."""
    if args.data != "auto" or args.resume:
        return args
    from common.data.registry import auto  # brings torch along

    name, reason = auto(args.data_dir)
    if is_main_process():
        print(reason)
    return replace(args, data=name)


def with_build(args: WithUNet) -> WithUNet:
    """Where the widths of a new run are left open, take those of the U-Net that it starts from."""
    if args.start is None or args.channels is not None or args.resume:
        return args
    path = unet_folder(find_root(args.start)) / "config.json"
    widths = read_json(path).get("block_out_channels")
    if not isinstance(widths, list) or not widths or not all(type(width) is int and width > 0 for width in widths):
        raise UserError(
            f"{path} does not say how wide its U-Net is: block_out_channels is {shown(widths)}, where a list of whole numbers was expected"
        )
    return replace(args, channels=tuple(widths))


def with_folder(args: Run, default: str) -> Run:
    """Choose the run folder where none is given: runs/<default>, numbered if that is taken.
    A folder that holds a run already is refused.
    """
    folder = args.out or free_folder(Path("runs") / default)
    if is_main_process() and (folder / "config.json").exists():
        raise UserError(f"{folder} already holds a run; continue it with --resume {folder}, or choose another --out")
    return replace(args, out=folder, threads=args.threads or threads_used())


def threads_used() -> int:
    """The number of threads that torch computes with. A resumed run is bit-equal only with the same number."""
    import torch

    return torch.get_num_threads()


def same_threads(threads: int | None, saved: int | None) -> int:
    """The number of threads of a resumed run:
    `threads` where the command gives it, else the number that the run began with.

    A line says so where the number differs from the run's, or from this machine's default.
    """
    chosen, usual = threads or saved or threads_used(), threads_used()
    if is_main_process():
        if saved not in (None, chosen):
            print(
                f"the run began with {saved} threads and goes on with {chosen}; its weights may differ in the last digits from those of an uninterrupted run"
            )
        elif chosen != usual:
            print(
                f"the run began with {saved} threads and goes on with as many; by default this machine takes {usual} (--threads {usual})"
            )
    use_threads(chosen)
    return chosen


# ------------------------------------------------------------------------------------------------------------ resuming

LATER = {"threads"}  # settings that older versions did not keep: their defaults hold
BUDGET = {"steps", "minutes"}
CHECKPOINT = re.compile(r"(step|model)-(\d+)(\.pt)?")


def resumed(args: Run, free: Sequence[str] = FREE) -> Run:
    """The settings of the run in args.resume, and those of `free` that are given beside it.
    Any other flag must agree with the run.

    args.resume is the run folder, or something in it: model, config.json, the newest checkpoint.
    """
    assert args.resume is not None
    run = run_folder(args.resume)
    path, kinds = run / "config.json", typing.get_type_hints(type(args))
    saved = read_json(path)
    names = {f.name for f in fields(args)}
    if unknown := saved.keys() - names:
        raise UserError(
            f"{path} has settings this program does not know: {', '.join(sorted(unknown))}; it may be a run of another program"
        )
    if missing := names - saved.keys() - LATER:
        raise UserError(
            f"{path} does not hold the settings of a run of this program: {', '.join(sorted(missing))} is missing; it may be a run of another program"
        )
    old = type(args)(**{name: from_json(value, kinds[name]) for name, value in saved.items()})
    check_saved(old, path)
    given = {
        name: getattr(args, name)
        for name in sorted(given_flags(args) - {"resume"})
        if (name, getattr(args, name)) != ("data", "auto")
    }
    refuse_changes(old, given, free, run)
    budget: dict[str, Any] = dict.fromkeys(BUDGET & names) if BUDGET & given.keys() else {}  # a new one replaces both
    changed = {name: value for name, value in given.items() if name in free}
    settings = replace(old, **budget | changed, out=run, resume=run)
    check_places(settings, given, path)
    return replace(settings, threads=same_threads(given.get("threads"), old.threads))


def given_flags(args: RunFlags) -> set[str]:
    """The flags that the command line names (cli.parse);
    of settings made in a program, those that differ from the defaults.
    """
    if (given := getattr(args, "given", None)) is not None:
        return set(given)
    return {f.name for f in fields(args) if getattr(args, f.name) != f.default}


def refuse_changes(old: RunFlags, given: dict[str, Any], free: Sequence[str], run: Path) -> None:
    """Refuse flags that would change what is learned; one that repeats the run's own setting is fine."""
    if "out" in given and resolved(given["out"]) != resolved(run):
        raise UserError(
            f"--out {given['out']} is not the folder of the run {run}, and a resumed run continues in its own folder; remove --out"
        )
    own = {name: getattr(old, name) for name in given if name not in free and name != "out"}
    changed = {name: value for name, value in own.items() if resolved(given[name]) != resolved(value)}
    if changed:
        flags = [
            f"--{name.replace('_', '-')} is {spelled(given[name])} here and {spelled(value)} in the run"
            for name, value in changed.items()
        ]
        raise UserError(
            f"{run} keeps the settings that it began with, but {', '.join(flags)}; leave {'it' if len(flags) == 1 else 'them'} out, or begin a new run"
        )


def spelled(value: Any) -> str:
    """A setting as a command line spells it."""
    words = {"True": "on", "False": "off", "None": "not set"}
    return " ".join(map(str, value)) if isinstance(value, tuple) else words.get(str(value), str(value))


def resolved(value: Any) -> Any:
    """A path as an absolute one, so that two ways of writing it are equal; any other value as it is."""
    return os.path.abspath(os.path.expanduser(value)) if isinstance(value, (str, Path)) else value


def check_places(args: RunFlags, given: dict[str, Any], path: Path) -> None:
    """Refuse places of data that config.json names and that are gone."""
    from common.data.registry import is_place

    for name in ("data", "subject"):
        values = getattr(args, name, None)
        for value in values if isinstance(values, tuple) else (values,):
            if name not in given and value is not None and is_place(str(value)) and not Path(value).exists():
                raise UserError(
                    f"{path} names --{name} {value}, and there is no such file or folder here; "
                    f"give its place beside --resume, for instance --{name} path/to/{Path(value).name}"
                )


def run_folder(path: Path) -> Path:
    """The run folder that a path leads to: itself, or the folder that holds it.
    A checkpoint must be the newest of its run.
    """
    above = list(Path(os.path.abspath(path)).parents)[:3]
    run = next((folder for folder in (path, *above) if is_run(folder)), None)
    if run is None:
        raise UserError(
            f"{path} is no run folder: {path / 'config.json'} is missing, or does not hold the settings of a run"
        )
    if not os.path.lexists(path):
        raise UserError(f"there is no {path}; give the run folder: --resume {run}")
    inside = Path(os.path.abspath(path)).relative_to(os.path.abspath(run)).parts
    named = next(filter(None, map(CHECKPOINT.fullmatch, inside)), None)
    files = [other.name for other in (*run.glob("checkpoints/step-*"), *run.glob("model-*.pt"))]
    kept = filter(None, map(CHECKPOINT.fullmatch, files))
    newest = max(kept, key=lambda found: int(found[2]), default=None)
    if named and newest and int(named[2]) != int(newest[2]):
        raise UserError(
            f"{named[0]} is not the newest checkpoint of {run}, which is {newest[0]}; go on from that one with --resume {run}, "
            "or move the newer ones away first"
        )
    return run


def is_run(folder: Path) -> bool:
    """Whether it holds the settings of a run; config.json is also what libraries call the description of a network."""
    path = folder / "config.json"
    return path.is_file() and {"out", "seed"} <= read_json(path).keys()


def from_json(value: Any, kind: Any) -> Any:
    """JSON knows neither tuples nor paths."""
    if isinstance(value, list):
        return tuple(value)
    return Path(value) if isinstance(value, str) and Path in (kind, *typing.get_args(kind)) else value
