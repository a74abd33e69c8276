"""Find, check and open pipelines of diffusers.

pipe = open_pipeline("04_latent_sd/pretrained/64x64")                   a folder, a run folder, a file, or an id of the Hugging Face hub
use_scheduler(pipe, "dpm++")
images = pipe("a red creature", generator=generators(seed=0, n=1), output_type="pt").images
"""

import inspect
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
    DiffusionPipeline,
    StableDiffusionPipeline,
)
from tokenizers import Tokenizer as Backend
from torch import Tensor, nn

from common.cli import pick_precision
from common.errors import UserError, enough_memory, explain
from common.io.config_values import check_values
from common.io.files import read_json
from common.io.ranges import Range
from common.io.state_dict import count_parameters
from common.io.weight_files import variant_in
from common.models.pipeline_folder import INDEX, find_pipeline, quiet
from common.models.text.tokenizer import Tokenizer
from finetune_diffusers.flags import PRETRAINED, SMALL
from finetune_diffusers.pixel_pipeline import open_pixels, pixel_folder

# what is given: a prompt; a prompt and a picture; a prompt, a picture and a mask
Task = Literal["text", "image", "inpaint"]
PRECISIONS = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FAMILIES = {
    "StableDiffusionPipeline": "Stable Diffusion 1.x and 2.x",
    "StableDiffusionXLPipeline": "Stable Diffusion XL",
}
ONE_ENCODER = ("StableDiffusionPipeline",)
TUNED_FAMILIES = tuple(FAMILIES)  # what finetune.py, lora.py and dreambooth.py train
AUTO = {"text": AutoPipelineForText2Image, "image": AutoPipelineForImage2Image, "inpaint": AutoPipelineForInpainting}


def find_model(name: str | Path, revision: str | None = None, variant: str | None = None) -> Path:
    """The folder of a pipeline. name: a local folder, a run folder, a checkpoint in one file, or a hub id."""
    if not Path(name).exists() and Path(name).resolve() == PRETRAINED.resolve():
        raise UserError(
            f"the course's own model is not in {PRETRAINED}; make it with 04_latent_sd/train.py, or name another with --model"
        )
    if revision and Path(name).expanduser().exists():
        raise UserError(
            f"--revision {revision} names a version of a repository on the hub, and {name} is here; leave it out"
        )
    return find_pipeline(f"{name}@{revision}" if revision else name, variant)


def open_pipeline(
    name: str | Path = PRETRAINED,
    task: Task = "text",
    device: str = "cpu",
    dtype: torch.dtype | None = None,  # of the weights; None is float32 on a CPU, and half precision on a GPU
    revision: str | None = None,  # branch, tag or commit of a repository on the hub
    variant: str | None = None,  # such as "fp16"; None is the weights without a variant, where there are any
    offload: bool = False,  # keep the networks in main memory, and move each to the GPU while it works
    safety_checker: bool = True,  # whether to load the model's safety checker, where it has one
) -> DiffusionPipeline:
    """A pipeline for the task, in evaluation mode on the device, with the scheduler that it was saved with."""
    folder = find_model(name, revision, variant)
    check_task(folder, task)
    if dtype is None:  # half precision is many times slower on a CPU
        dtype = PRECISIONS[pick_precision("auto", device) if device.startswith("cuda") else "no"]
    quiet()
    try:
        with without_future_warnings(), enough_memory(device, "a smaller model, or --device cpu"):
            settings = {"dtype": dtype, "variant": variant or variant_in(folder), **absent_parts(folder)}
            settings |= {} if safety_checker else without_safety_checker(folder)
            pipe = AUTO[task].from_pretrained(folder, **settings)
            if not (offload and device.startswith("cuda")):
                return pipe.to(device)
            # instead of .to(device): a model that is larger than the GPU's memory would fail there
            pipe.enable_model_cpu_offload(device=device)
            return pipe
    except UserError:
        raise
    except Exception as problem:  # each library raises its own exceptions
        raise UserError(f"the pipeline in {folder} cannot be opened ({explain(problem)})") from problem


def open_for_training(
    name: str, device: str, families: Sequence[str] = ONE_ENCODER, **which: str | None
) -> StableDiffusionPipeline:
    """A Stable Diffusion pipeline, or one of chapter 2's pixel models, with float32 weights that can be trained.

    Without a safety checker: it would blacken class images and validation pictures, and takes memory.

    families  the pipelines that the caller takes; others are refused by name
    which     revision and variant, as for open_pipeline
    """
    root = pixel_folder(name)
    pipe = (
        open_pixels(root, device)
        if root
        else open_pipeline(name, device=device, dtype=torch.float32, safety_checker=False, **which)
    )
    if type(pipe).__name__ not in families:
        known = " and ".join(f"{FAMILIES[family]} ({family})" for family in families)
        raise UserError(f"{name} holds a {type(pipe).__name__}; this training takes {known}")
    return pipe


def as_task(pipe: DiffusionPipeline, task: Task) -> DiffusionPipeline:
    """The same networks in a pipeline for another task; no weight is copied."""
    with without_future_warnings():
        return AUTO[task].from_pipe(pipe)


@contextmanager
def without_future_warnings() -> Iterator[None]:
    """Hide the libraries' notes about their own next versions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


# ----------------------------------------------------------------------------------------------------- what is refused


def absent_parts(folder: Path) -> dict[str, None]:
    """Text encoders that the pipeline was saved without, such as the third of Stable Diffusion 3;
    diffusers wants them as None.
    """
    return {
        name: None
        for name, kind in read_json(folder / INDEX).items()
        if name.startswith(("text_encoder", "tokenizer")) and kind == [None, None]
    }


def without_safety_checker(folder: Path) -> dict[str, Any]:
    """Settings of from_pretrained that leave the safety checker out, for a pipeline that knows one."""
    known = "safety_checker" in read_json(folder / INDEX)
    return {"safety_checker": None, "requires_safety_checker": False} if known else {}


def check_task(folder: Path, task: Task) -> None:
    """Refuse a model that cannot do the task, and say which program can."""
    kind = str(read_json(folder / INDEX).get("_class_name"))
    if not (folder / "text_encoder").is_dir():
        raise UserError(
            f"{folder} holds a {kind} without a text encoder, so it takes no prompt; train_unconditional.py continues unconditional models"
        )
    if not (folder / "unet").is_dir() or not (folder / "vae").is_dir():
        return  # another build than Stable Diffusion's: its own pipeline knows what it can do
    channels, latents = (
        channel_count(folder / part / "config.json", key)
        for part, key in (("unet", "in_channels"), ("vae", "latent_channels"))
    )
    if task != "inpaint" and channels == 2 * latents + 1:
        raise UserError(
            f"{folder} is an inpainting model: its U-Net has {channels} input channels ({latents} of the noisy picture, 1 of the mask, "
            f"{latents} of the masked picture), so it needs a picture and a mask; use restore.py, or a model with {latents} channels here"
        )
    if channels not in (latents, 2 * latents + 1):
        raise UserError(
            f"the U-Net in {folder} has {channels} input channels; the programs of this chapter know {latents} and {2 * latents + 1}"
        )


def channel_count(path: Path, key: str) -> int:
    """A number of channels in a config.json; 4, as in diffusers, where it is left out."""
    config = read_json(path)
    check_values(config, {key: Annotated[int, Range(1, 65_536)]}, str(path))
    return config.get(key, 4)


def need_unet(pipe: DiffusionPipeline, model: str) -> None:
    """Refuse newer models, whose network is a transformer, where a program reads the configuration of a U-Net."""
    if getattr(pipe, "unet", None) is None:
        raise UserError(
            f"{model} holds a {type(pipe).__name__}, whose network is a transformer; this program knows models with a U-Net, and generate.py draws with both"
        )


def prompt_notes(pipe: DiffusionPipeline, prompt: str) -> list[str]:
    """What the user should know about a prompt: it is empty, cut, or holds words that the model has never seen."""
    backend = Backend.from_str(pipe.tokenizer.backend_tokenizer.to_str())  # a copy, because ours changes its padding
    return Tokenizer(backend, pipe.tokenizer.model_max_length, pipe.tokenizer.pad_token).remarks(prompt)


# ---------------------------------------------------------------------------------------------------- an open pipeline


def network_of(pipe: DiffusionPipeline) -> nn.Module:
    """The denoising network: a U-Net, or the transformer of newer models."""
    return pipe.unet if getattr(pipe, "unet", None) is not None else pipe.transformer


def is_xl(pipe: DiffusionPipeline) -> bool:
    """Whether it is a Stable Diffusion XL: two text encoders, and a pooled text and the picture's size as conditions."""
    return getattr(pipe, "text_encoder_2", None) is not None


def native_size(pipe: DiffusionPipeline) -> int:
    """Side in pixels of the images that the model was trained on."""
    size = network_of(pipe).config.sample_size
    return (size if isinstance(size, int) else size[0]) * pipe.vae_scale_factor


def default_guidance(pipe: DiffusionPipeline) -> float:
    """The guidance scale that suits a model: 3 for a small one like the course's, else the default of its pipeline."""
    if count_parameters(network_of(pipe)) < SMALL:
        return 3.0
    return float(inspect.signature(type(pipe).__call__).parameters["guidance_scale"].default)


@contextmanager
def count_calls(network: nn.Module) -> Iterator[list[int]]:
    """Count the function evaluations of a network within this context, the cost of a sampler.
    Yields a list with one number.
    """
    count = [0]

    def add(*_: object) -> None:
        count[0] += 1

    with network.register_forward_hook(add):
        yield count


@torch.no_grad()
def reconstruct(vae: nn.Module, images: Tensor) -> Tensor:
    """Images encoded and decoded again, which bounds what any latent can represent.
    (N, 3, H, W) in [-1, 1], on the CPU
    """
    latents = [vae.encode(part.to(vae.device, vae.dtype)).latent_dist.mean for part in images.split(16)]
    return torch.cat([vae.decode(z, return_dict=False)[0].float().cpu() for z in latents]).clamp(-1, 1)
