"""Published text-to-image models as painters of the dish, through diffusers' AutoPipelineForText2Image, and the
language in which a model has to be addressed.

    drawn = open_published("stable-diffusion-v1-5/stable-diffusion-v1-5", SamplingConfig(7.5))
    drawn(["tomato and scrambled eggs"] * 4)                        # (4, 3, 512, 512) in [-1, 1]

A model of this course is conditioned on Chinese names. Published ones have read English, so they get the English name
of the dish, and the guidance scale that is usual for them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

from common.diffusion.sampler_spec import Sampler
from common.errors import UserError, explain
from common.io.files import read_json
from common.models.find_model import find_root
from common.models.pipeline import SamplingConfig
from common.models.pipeline_folder import INDEX, find_pipeline, parts_of
from inpaint_gif.clip.name_encoder import CLIP_RECORD
from inpaint_gif.inpainting.backends import is_hub_id, open_pipe

PUBLISHED_GUIDANCE = 7.5  # usual for Stable Diffusion
PROBE = "番茄炒蛋米饭"  # read in one token per character by a vocabulary that was made of Chinese texts
SIZE = 512  # pixels a side, of a pipeline whose networks do not say at which size they were trained


def model_folder(name: str) -> Path:
    """The folder of a model: of a run, of diffusers, of a converted file; or of a hub id, downloaded if needed."""
    path = Path(name).expanduser()
    return find_root(path) if path.exists() or not is_hub_id(name) else find_pipeline(name)


def is_published(name: str) -> bool:
    """Whether --dish names a model for diffusers: a pipeline folder, a checkpoint in one file, or a hub id that is
    no local path. A run of train_text2dish.py is none."""
    path = Path(name).expanduser()
    if path.is_dir():
        roots = (path, path / "model")
        return any((root / INDEX).exists() for root in roots) and not any((r / CLIP_RECORD).exists() for r in roots)
    return path.is_file() or is_hub_id(name)


def reads_english_only(name: str) -> bool:
    """Whether the text encoder of a model cuts Chinese into pieces of characters, which it has hardly seen."""
    folder = model_folder(name)
    tokenizers = sorted(path for path in folder.glob("tokenizer*") if path.is_dir())
    return bool(tokenizers) and not any(count_tokens(path) <= len(PROBE) for path in tokenizers)


def count_tokens(folder: Path) -> int:
    """Number of tokens of PROBE."""
    from transformers import AutoTokenizer

    try:
        return len(AutoTokenizer.from_pretrained(folder, local_files_only=True).tokenize(PROBE))
    except Exception as problem:  # OSError, ValueError, and errors of its files
        raise UserError(f"the tokenizer in {folder} cannot be opened ({explain(problem)})") from problem


# ------------------------------------------------------------------------------------------------------------- drawing


@dataclass(frozen=True)
class PublishedModel:
    """A text-to-image pipeline of diffusers."""

    pipe: Any
    config: SamplingConfig = SamplingConfig()

    @property
    def size(self) -> int:
        """Side in pixels at which it was trained."""
        net = getattr(self.pipe, "unet", None) or getattr(self.pipe, "transformer", None)
        side = getattr(getattr(net, "config", None), "sample_size", None) or getattr(
            self.pipe, "default_sample_size", None
        )
        return side * self.pipe.vae_scale_factor if isinstance(side, int) else SIZE

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """One image for each prompt, (N, 3, S, S) in [-1, 1] on the CPU, drawn one after another to save memory.
        What the safety checker of the model withheld is left out.
        """
        images = []
        for k, prompt in enumerate(prompts):
            output = self.pipe(
                prompt=prompt,
                height=self.size,
                width=self.size,
                num_inference_steps=Sampler.parse(self.config.sampler).steps,
                guidance_scale=float(self.config.guidance_scale),
                generator=torch.Generator().manual_seed(self.config.seed + k),
                output_type="pt",
            )
            if not any(getattr(output, "nsfw_content_detected", None) or []):
                images.append(output.images[0].float().cpu() * 2 - 1)
        if not images:
            raise UserError("the model's safety checker withheld every picture; try another --seed or --dish-prompt")
        return torch.stack(images).clamp(-1, 1)


def open_published(model: str, config: SamplingConfig, device: str = "cpu") -> PublishedModel:
    """Open a pipeline that draws from text: a folder, a checkpoint in one file, or a hub id."""
    folder = model_folder(model)
    if not any(part.startswith("text_encoder") for part in parts_of(read_json(folder / INDEX))):
        raise UserError(
            f"the model in {model} reads no text, so it cannot draw a dish from its name; give another --dish"
        )
    pipe = open_pipe(diffusers.AutoPipelineForText2Image, str(folder), config, device)
    unet, vae = getattr(pipe, "unet", None), getattr(pipe, "vae", None)
    if unet is not None and vae is not None and unet.config.in_channels != vae.config.latent_channels:
        raise UserError(
            f"the U-Net in {model} paints into holes, so it cannot draw a dish from its name; "
            "give a text-to-image model with --dish, and this one with --model"
        )
    return PublishedModel(pipe, config)
