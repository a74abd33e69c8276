"""A Chinese CLIP as the text encoder of a diffusion model,
and folders of models that are conditioned on its embeddings.

    pipeline = open_model(Path("06_inpaint_gif/pretrained/text2dish"))
    pipeline.txt2img(["番茄炒蛋"] * 4, SamplingConfig(guidance_scale=5))            # (4, 3, S, S) in [-1, 1]

Such a folder records in CLIP_RECORD which CLIP it was trained with,
because the embeddings of another one mean nothing to its U-Net.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.io.files import read_json, write_json
from common.models.find_model import find_root
from common.models.pipeline import TextToImagePipeline
from common.models.text_to_image_folder import open_pipeline
from inpaint_gif.clip.formats import CLIPCheckpoint
from inpaint_gif.clip.model import BACKENDS, ChineseCLIP, load_clip

CLIP_RECORD = "text2dish.json"  # in the folder of a model that is conditioned on CLIP embeddings
OTHER_CLIP = (
    "Without --clip, the CLIP in its folder or the shipped one is used; to use this one, "
    "train a model for it: python 06_inpaint_gif/train_text2dish.py --clip ..."
)


class CLIPNameEncoder:
    """Encodes a name as two tokens for cross-attention: its CLIP embedding, and a zero vector.

    With a single token, softmax over it is 1 at every pixel, so the same vector would be added to plate and table
    alike. The zero token adds nothing, so each pixel can attend to the name as much as it needs. The empty name is two
    zero tokens. CLIP embeddings have length 1; they are multiplied by sqrt(D), so that their components have the scale
    that the U-Net expects.
    """

    def __init__(self, clip: ChineseCLIP):
        self.clip, self.dim = clip, clip.dim

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """(B, 2, D)"""
        given = torch.tensor([[bool(text.strip())] for text in captions], device=self.clip.device)
        return name_tokens(self.clip.encode_text(captions) * given)

    def remarks(self, prompt: str) -> list[str]:
        """None here: dish_names.parse_dish_name makes the remarks about names."""
        return []


def name_tokens(embeddings: Tensor) -> Tensor:
    """Unit vectors, or zero for the empty name -> tokens (B, 2, D). embeddings (B, D)"""
    return torch.stack([embeddings * embeddings.shape[-1] ** 0.5, torch.zeros_like(embeddings)], dim=-2)


def clip_fingerprint(checkpoint: CLIPCheckpoint) -> str:
    """32 hexadecimal digits of everything that text embeddings depend on, rounded to half precision, so that a CLIP
    stored in half precision has the fingerprint of its original."""
    digest = hashlib.sha256("\n".join(checkpoint.vocab).encode())
    for name, weight in sorted(checkpoint.state.items()):
        if name.startswith("bert.") or name == "text_projection":
            digest.update(f"{name} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().to("cpu", torch.float16).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


# ------------------------------------------------------------------------------------------------------------- folders


def open_model(
    folder: Path, device: str | torch.device = "cpu", clip: ChineseCLIP | None = None
) -> TextToImagePipeline:
    """Open a run folder, or a folder or file of Stable Diffusion; every key is checked.

    clip  text encoder of a model with a CLIP_RECORD; by default the CLIP in its folder, else the shipped one
    """
    root, encoder = find_root(Path(folder)), None
    if uses_clip(root):
        encoder = CLIPNameEncoder(clip or load_clip_for(root, device))
        check_clip(root, encoder.clip)
    pipeline = open_pipeline(root, device, encoder)
    if isinstance(pipeline.text_encoder, nn.Module):
        pipeline.text_encoder.requires_grad_(False)
    return pipeline


def uses_clip(folder: Path) -> bool:
    """Whether the model in this folder is conditioned on CLIP embeddings."""
    return (find_root(Path(folder)) / CLIP_RECORD).exists()


def check_draws(folder: Path, pipeline: TextToImagePipeline) -> None:
    """Refuse a model that cannot draw a whole image from text."""
    if pipeline.is_inpainting or pipeline.text_encoder is None:
        why = "paints into holes" if pipeline.is_inpainting else "reads no text"
        raise UserError(
            f"the U-Net in {folder} {why}, so it cannot draw a dish from its name; "
            "give a model that can, such as a run of train_text2dish.py"
        )


def load_clip_for(
    folder: Path, device: str | torch.device = "cpu", name: str | None = None, backend: str = BACKENDS[0]
) -> ChineseCLIP:
    """The CLIP of this name; without a name the CLIP in the model's folder, else the shipped one."""
    own = find_root(Path(folder)) / "clip"
    return load_clip(name or (own if own.is_dir() else "pretrained"), backend, device)


def open_dish_model(
    folder: Path, device: str, clip_name: str | None, clip_backend: str, advice: str = ""
) -> tuple[ChineseCLIP, TextToImagePipeline]:
    """The CLIP of this name, by default the model's own, and the model in this folder, which must draw from text."""
    if not folder.exists():
        raise UserError(
            f"{folder} is missing; train it with python 06_inpaint_gif/train_text2dish.py and give the run with --dish{advice}"
        )
    clip = load_clip_for(folder, device, clip_name, clip_backend)
    pipeline = open_model(folder, device, clip)
    check_draws(folder, pipeline)
    return clip, pipeline


def write_clip_record(root: Path, clip: ChineseCLIP) -> None:
    """Record which CLIP a model was trained with."""
    record = {"clip": clip_fingerprint(clip.checkpoint), "dim": clip.dim, "trained_with": clip.checkpoint.source}
    write_json(root / CLIP_RECORD, record)


def check_clip(root: Path, clip: ChineseCLIP) -> None:
    """Refuse a CLIP that the model in this folder was not trained with."""
    known, source = read_json(root / CLIP_RECORD), clip.checkpoint.source
    if known.get("dim") != clip.dim:
        raise UserError(
            f"{root} reads vectors of {known.get('dim')} numbers, but this CLIP ({source}) gives {clip.dim}. {OTHER_CLIP}"
        )
    if known.get("clip") != clip_fingerprint(clip.checkpoint):
        raise UserError(
            f"{root} was trained with another CLIP ({known.get('trained_with')}), "
            f"and the vectors of this one ({source}) mean nothing to it. {OTHER_CLIP}"
        )
