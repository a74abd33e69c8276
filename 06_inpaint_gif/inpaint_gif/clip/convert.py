"""Conversion of a Chinese CLIP between its two formats,
and the proof that both libraries compute the same embeddings.
"""

from pathlib import Path

import torch
from torch import Tensor

from common.errors import UserError
from inpaint_gif.clip.formats import CLIPCheckpoint, save_checkpoint, save_folder
from inpaint_gif.clip.model import BACKENDS, INSTALL, ChineseCLIP, cn_clip_installed, find_checkpoint

TEXTS = ("番茄炒蛋", "木桌上的一碗米饭，俯拍", "a bowl of rice", "龘")
TOLERANCE = 1e-5  # largest difference between components of unit vectors
FILES = (".pth", ".bin", ".ckpt", ".safetensors")  # suffixes that are unlikely to be meant as the name of a folder


def convert(name: str, out: Path | None, half: bool) -> None:
    """Write the other format of what load_clip calls `name`:
    a checkpoint if `out` ends in .pt, else a folder. half: in float16
    """
    if out is None:
        raise UserError("say where the other form goes: --out clip.pt for cn_clip, --out FOLDER for transformers")
    if out.suffix in FILES:
        raise UserError(
            f"--out {out} is neither a folder for transformers nor a checkpoint for cn_clip, which ends in .pt"
        )
    if half and out.suffix == ".pt":
        raise UserError("--half is for a folder; a checkpoint for cn_clip is stored in single precision")
    if out.exists() and (out.suffix == ".pt" or not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already; choose another name")
    checkpoint = find_checkpoint(name)
    compare_backends(checkpoint)
    if out.suffix == ".pt":
        save_checkpoint(out, checkpoint)
    else:
        save_folder(out, checkpoint, torch.float16 if half else torch.float32)
    find_checkpoint(str(out))  # raises if it cannot be read again
    weights = sum(value.numel() for value in checkpoint.state.values())
    print(f"{out}: {weights:,} weights, {len(checkpoint.vocab):,} tokens")


def compare_backends(checkpoint: CLIPCheckpoint) -> None:
    """Load the weights strictly in transformers and, if it is installed, in cn_clip;
    refuse weights whose embeddings differ.
    """
    if not cn_clip_installed():
        sample_embeddings(checkpoint, "transformers")
        print(f"cn_clip is not installed, so the two libraries were not compared; to do so: {INSTALL}")
        return
    first, second = (sample_embeddings(checkpoint, backend) for backend in BACKENDS)
    difference = float((first - second).abs().max())
    print(f"cn_clip and transformers differ by {difference:.1e} at most")
    if not difference <= TOLERANCE:  # NaN is refused, too
        raise UserError(
            f"the vectors of the two libraries should differ by less than {TOLERANCE:g}, so nothing was written; "
            "compare the versions of cn_clip, torch and transformers with those in constraints.txt"
        )


def sample_embeddings(checkpoint: CLIPCheckpoint, backend: str) -> Tensor:
    """Embeddings of TEXTS and of four images of noise. (N, D)"""
    size = checkpoint.config.image_resolution
    images = torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    clip = ChineseCLIP(checkpoint, backend)
    return torch.cat([clip.encode_text(TEXTS), clip.encode_image(images)])
