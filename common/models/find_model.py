"""Where the parts of a model lie: in a run folder, a folder of `diffusers`, a flat folder, or one file.

run/model/unet/config.json, run/model/scheduler/scheduler_config.json       a run of the course
model/unet/config.json, model/scheduler/scheduler_config.json               what diffusers writes
model/transformer/config.json, model/scheduler/scheduler_config.json        a Diffusion Transformer
model/config.json, model/scheduler_config.json                              flat, as google/ddpm-cifar10-32
model.safetensors                                                           a checkpoint of Stable Diffusion in one
                                                                            file
"""

from pathlib import Path

from common.errors import UserError
from common.io.files import read_json

UNETS = ("UNet2DModel", "UNet2DConditionModel")


def find_root(path: Path, kind: str = "a diffusers model") -> Path:
    """The folder whose parts unet_folder and scheduler_file find:
    the folder itself, the `model` of a run, or what a file is converted to.
    """
    if path.is_file():
        from common.models.single_file.conversion import as_folder

        path = as_folder(path)
    if not path.exists():
        raise UserError(f"there is no folder {path}; give a run folder, or the folder of {kind}")
    for folder in (path, path / "model"):
        if (folder / "unet").is_dir() or (folder / "transformer").is_dir():
            return folder
        if is_unet(folder):
            if (folder / "scheduler_config.json").exists():
                return folder
            if folder.name == "unet" and (folder.parent / "scheduler").is_dir():
                return folder.parent
            raise UserError(
                f"{folder} holds a U-Net alone: scheduler_config.json, which says how it was trained, is neither there nor in "
                f"{folder.parent / 'scheduler'}; give the folder of {kind}"
            )
    there = sorted(each.name for each in path.iterdir())
    raise UserError(
        f"{path} holds no model: neither {path / 'unet'} nor {path / 'model' / 'unet'} nor a folder `transformer` is there, nor a config.json of a U-Net; "
        f"it holds {', '.join(there[:8]) or 'nothing'}"
    )


def is_unet(folder: Path) -> bool:
    """Whether the folder itself is that of a U-Net."""
    return (folder / "config.json").is_file() and read_json(folder / "config.json").get("_class_name") in UNETS


def is_dit(root: Path) -> bool:
    """Whether the network in a model's folder is a Diffusion Transformer."""
    return (root / "transformer").is_dir() and not (root / "unet").is_dir()


def unet_folder(root: Path) -> Path:
    """The folder of the U-Net in a model's folder. UserError where the model is a Diffusion Transformer."""
    if is_dit(root):
        raise UserError(f"the network in {root} is a Diffusion Transformer, where a U-Net was expected")
    return root / "unet" if (root / "unet").is_dir() else root


def scheduler_file(root: Path) -> Path:
    """The scheduler_config.json in a model's folder."""
    flat = root / "scheduler_config.json"
    return (
        flat if flat.exists() and not (root / "scheduler").is_dir() else root / "scheduler" / "scheduler_config.json"
    )
