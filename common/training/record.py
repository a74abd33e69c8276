"""What a run folder holds besides checkpoints, log and model, so that a run can be resumed from this folder alone.

config.json   every setting; paths are absolute, so that it does not matter where the command is typed
data.json     number, fingerprint and colours of the training images, and the fingerprint of a frozen model where it
              stays outside the run folder
batch.json    range, mean and standard deviation of the first batch, as the loss got it
diverged.json the message of a training that stopped because its loss was not finite (common/training/logging.py)
start/        the weights that the training begins with: an autoencoder, a text encoder, a U-Net
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from common.cli import writable_folder
from common.data.registry import is_place
from common.errors import UserError
from common.io.files import read_json, write_folder, write_json
from common.io.state_dict import fingerprint
from common.training.checkpoint import Stateful
from common.training.flags import RunFlags
from common.training.optimization import need_memory

Start = TypeVar("Start")


def record_of(images: Tensor, *others: Any) -> dict[str, Any]:
    """The content of data.json. images: (N, C, H, W) pixels;
    others: what belongs to them, such as captions and labels.
    """
    return {"images": len(images), "fingerprint": fingerprint(images, *others), "colours": colours(images)}


def colours(images: Tensor) -> list[float]:
    """The mean of each channel over all images, in [-1, 1]. images: (N, C, H, W) uint8"""
    # in parts, because float64 takes eight times the memory of bytes
    sums = sum(part.sum((0, 2, 3), dtype=torch.float64) for part in images.split(256))
    return (sums / (images[:, 0].numel() or 1) / 127.5 - 1).tolist() if len(images) else []


def inspect_first_batch(
    run: Path | None, net: nn.Module, batch: dict[str, Tensor], loss: Callable[..., Any], accelerator: Accelerator
) -> None:
    """Write batch.json, and refuse a batch that is not going to fit into memory.
    run: None where a run is resumed, because its folder has the file, which describes the first batch of all
    """
    if run and accelerator.is_main_process:
        keep_first_batch(run, batch)
    if not isinstance(loss, Stateful):
        need_memory(net, batch, loss, accelerator)


def keep_first_batch(run: Path, batch: Mapping[str, Tensor]) -> None:
    """Write batch.json. batch: what the loss gets, {"image": (B, C, H, W), "label": (B,), ...}

    A wrong range, latents that were not scaled and swapped channels are plain in four numbers of one batch, whereas a
    loss curve does not show them. `python -m common.doctor --run FOLDER` reads them.
    """
    write_json(run / "batch.json", {name: statistics(value) for name, value in batch.items() if value.numel()})


def statistics(value: Tensor) -> dict[str, Any]:
    """Shape, smallest and largest number, mean and standard deviation; of (B, C, H, W) also the mean by channel."""
    v = value.detach().cpu().double()
    known = {"shape": list(v.shape), "min": v.min().item(), "max": v.max().item(), "mean": v.mean().item()}
    return (
        known | {"std": v.std(correction=0).item()} | ({"channels": v.mean((0, 2, 3)).tolist()} if v.ndim == 4 else {})
    )


def check_record(flags: RunFlags, record: dict[str, Any]) -> None:
    """Refuse to resume a run on other images, or beside another frozen model, than it was trained on.
    `record`: what there is now.
    """
    path = flags.run_dir / "data.json"
    if not flags.resume or not path.exists():
        return
    known, settings = read_json(path), vars(flags)
    data = settings.get("data", "")
    where = " ".join(data) if isinstance(data, tuple) else data
    advice = "put them back as they were, or begin a new run"
    if known.get("images") != record["images"]:
        raise UserError(
            f"{flags.run_dir} was trained on {known.get('images')} images, and {where or 'its data'} now holds {record['images']}; {advice}"
        )
    if known.get("fingerprint") != record["fingerprint"]:
        raise UserError(
            f"the {record['images']} images of {where or 'the run'} differ from those that "
            f"{flags.run_dir} was trained on, or their captions or labels do; {advice}"
        )
    if known.get("model") != record.get("model"):
        raise UserError(
            f"the weights in {settings['model']} differ from those beside which {flags.run_dir} was trained; give that model with --model, or begin a new run"
        )


def keep_settings(flags: RunFlags, record: dict[str, Any], save_start: Callable[[Path], object] | None = None) -> None:
    """Write what a resumed run needs; the settings last, because a folder with settings is a run.
    save_start(folder) writes start/.
    """
    writable_folder(flags.run_dir)
    if not flags.resume:
        if save_start:
            write_folder(flags.run_dir / "start", save_start)
        write_json(flags.run_dir / "data.json", record)
    write_json(flags.run_dir / "config.json", as_saved(flags))


def start_of(flags: RunFlags, given: Start) -> Start | Path:
    """Where the weights are that the run begins with:
    a resumed run has its own copy (runs of older versions have it in model/).
    """
    folders = (flags.run_dir / "start", flags.run_dir / "model") if flags.resume else ()
    return next((folder for folder in folders if folder.is_dir()), given)


def as_saved(flags: RunFlags) -> dict[str, Any]:
    """The settings for config.json."""
    saved = asdict(replace(flags, resume=None))
    return {name: value if name == "out" else absolute(name, value) for name, value in saved.items()}


def absolute(name: str, value: Any) -> Any:
    """Paths as absolute ones. A word that names data or a model is a path where there is such a file or folder."""
    if isinstance(value, (tuple, list)):
        return [absolute(name, item) for item in value]
    path = isinstance(value, Path) or (
        isinstance(value, str)
        and ((name == "data" and is_place(value)) or (name in ("model", "text") and value != "small"))
    )
    if not path:
        return value
    there = Path(value).expanduser()
    return str(there.resolve()) if isinstance(value, Path) or there.exists() else value
