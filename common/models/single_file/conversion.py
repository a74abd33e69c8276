"""Checkpoints in one file, as from Civitai or the webui: what a file holds, and its conversion to a folder of
`diffusers`.

    kind_of(read_tensors(path))        FileKind("sd", "a checkpoint of Stable Diffusion 1.x (U-Net, autoencoder, text
                                       encoder)", ...)
    as_folder(path)                    runs/single_files/NAME-1a2b3c4d, which every program of the course opens

The file has the names of CompVis (input_blocks.1.0.in_layers.2.weight). The converters of diffusers rename them; this
module infers from names and shapes the configurations that they need, so that no network connection is needed.
What a file does not say:

    heads          8 at every level (Stable Diffusion 1.x), or 64 channels a head (2.x and XL: linear projections)
    prediction     of 1.x and XL: the noise, unless the file has "v_pred". Of 2.x: what the file's metadata, its
                   "v_pred" or NAME.yaml beside it say, else v
    tokenizer      that of CLIP: in a folder `tokenizer` beside the file, in the cache of the hub, or on the hub
"""

import hashlib
import os
import shutil
from pathlib import Path

from safetensors import SafetensorError

from common.errors import UserError, explain
from common.io.state_dict import read_tensors
from common.models.single_file.kinds import kind_of
from common.models.single_file.parts import write_vae
from common.models.single_file.stable_diffusion import write_pipeline
from common.models.single_file.stable_diffusion_xl import write_xl_pipeline

SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin")
CONVERTED = Path("runs/single_files")


def as_folder(path: Path, wanted: tuple[str, ...] = ("sd",), kept: Path | None = None) -> Path:
    """A folder with what the file holds, converted once and kept in runs/single_files under the name of the file.

    wanted  kinds that the caller can use: "sd" and "xl" give the folder of a pipeline, "vae" that of an autoencoder.
            Others are refused by name.
    """
    path = Path(path).expanduser()
    beside = path.parent / "config.json"
    if beside.exists() and path.name.startswith(("diffusion_pytorch_model", "model.", "pytorch_model")):
        return path.parent  # a part of a folder of diffusers, named by its file
    if path.parent.name == "checkpoints" and path.name.startswith("step-"):
        raise UserError(f"{path} is a checkpoint of the run {path.parent.parent}; give that folder")
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"{path} is a file, and no file of weights by its name ({', '.join(SUFFIXES)}); give a folder or a file of weights"
        )
    about = path.stat()
    mark = hashlib.sha256(f"{path.resolve()} {about.st_size} {about.st_mtime_ns}".encode()).hexdigest()[:8]
    folder = (kept or CONVERTED) / f"{path.stem}-{mark}"
    if (folder / "config.json").exists() and "vae" in wanted or (folder / "model_index.json").exists():
        return folder
    state = read_tensors(path)
    kind = kind_of(state)
    if kind.name not in wanted:
        expected = "a checkpoint of Stable Diffusion " + ("1.x, 2.x or XL" if "xl" in wanted else "1.x or 2.x")
        expected += " or an autoencoder" if "vae" in wanted else ""
        raise UserError(
            f"{path} holds {kind.says}, where {expected} was expected" + (f"; {kind.advice}" if kind.advice else "")
        )
    building = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(building, ignore_errors=True)
    try:
        if kind.name == "vae":
            write_vae(building, state, 256, path)
        elif kind.name == "xl":
            write_xl_pipeline(building, state, path)
        else:
            write_pipeline(building, state, path)
        building.rename(folder)
    except (OSError, SafetensorError) as problem:  # a full disk is either
        if folder.exists():  # another process was faster
            return folder
        raise UserError(f"cannot write {folder} ({explain(problem)})") from problem
    finally:
        shutil.rmtree(building, ignore_errors=True)
    print(f"{path.name}: {kind.says}, converted to the folder {folder}")
    return folder
