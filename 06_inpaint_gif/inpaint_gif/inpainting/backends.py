"""The inpainting backends behind one interface (interface.py): backend(image, mask, prompt, seed) -> image.

  inpaint    an inpainting U-Net (train_inpaint.py), which takes the mask and the known latents beside the noisy
             latents
  repaint    RePaint with any diffusion model of latents or pixels, with text or without, that was not trained for
             inpainting
  controlnet a text-to-image model with a ControlNet that sees the picture with its hole (train_controlnet.py)
  diffusers  any Stable Diffusion for inpainting, as a folder, a file or a hub id, through diffusers'
             AutoPipelineForInpainting
  nearest, reflect    no network: they continue the edge of the hole (edge_fill.py)

All return a whole picture. CompositedBackend fits it in: colours are matched to the known pixels along the edge and
continued across it, the edge is softened on its inner side, and every known pixel is restored exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
from torch import Tensor

from common.diffusion.sampler_spec import Sampler
from common.diffusion.samplers import initial_noise
from common.errors import UserError, explain
from common.io import hub
from common.io.weight_files import choose, chosen_files, find_weights, variant_in
from common.models.pipeline import SamplingConfig, TextToImagePipeline
from common.models.pipeline_folder import find_pipeline, quiet
from common.random import Noise
from inpaint_gif.clip.model import ChineseCLIP
from inpaint_gif.clip.name_encoder import open_model
from inpaint_gif.inpainting.compositing import check_size, feathered, inpaint_cropped, levelled, matched, overlay
from inpaint_gif.inpainting.edge_fill import FILLS, nearest
from inpaint_gif.inpainting.interface import InpaintingBackend
from inpaint_gif.inpainting.repaint import JUMP, TIMES, repaint

CHAPTER = Path(__file__).parents[2]
ENGINES = ("inpaint", "repaint", "controlnet", "diffusers", *FILLS)  # the values of --engine
DEFAULTS = {  # the shipped models
    "inpaint": CHAPTER / "pretrained" / "inpaint",
    "repaint": CHAPTER / "pretrained" / "text2dish",
    "controlnet": CHAPTER.parent / "04_latent_sd" / "pretrained",
}
CONTROLNET = CHAPTER / "pretrained" / "controlnet"
BLUR = 3.0  # pixels over which the edge of the hole is softened


# ------------------------------------------------------------------------------------------- models of this course


@dataclass(frozen=True)
class InpaintBackend:
    """Stable Diffusion's inpainting (Rombach et al.
    2022, section 4.5): U-Net([noisy latents, mask, latents of the masked image]).
    """

    pipeline: TextToImagePipeline
    config: SamplingConfig = SamplingConfig()

    def __call__(self, image: Tensor, mask: Tensor, prompt: str, seed: int) -> Tensor:
        check_image(image, self.pipeline)
        return self.paint(image[None], mask[None], [prompt], seed)[0]

    def paint(self, images: Tensor, masks: Tensor, prompts: Sequence[str], seed: int) -> Tensor:
        """A batch. images (B, C, H, W), masks (B, 1, H, W) -> (B, C, H, W) on the CPU"""
        extra = inpainting_channels(self.pipeline, images, masks)
        denoise = self.pipeline.guided(prompts, self.config, extra)
        *_, last = self.pipeline.from_noise(denoise, len(prompts), tuple(extra.shape[2:]), self.config, Noise(seed))
        return self.pipeline.decode(last.x)


def check_image(image: Tensor, pipeline: TextToImagePipeline) -> None:
    """Refuse an image of a size or with a number of channels that the model cannot process."""
    check_size(*image.shape[1:], pipeline.factor)
    if len(image) != pipeline.image_channels:
        takes, given = channel_words(pipeline.image_channels), channel_words(len(image))
        raise UserError(f"this model paints pictures with {takes}, and the picture has {given}; give another --model")


def channel_words(channels: int) -> str:
    return {1: "one channel (grey)", 3: "three channels (colour)"}.get(channels, f"{channels} channels")


def inpainting_channels(pipeline: TextToImagePipeline, images: Tensor, masks: Tensor) -> Tensor:
    """The channels of an inpainting U-Net beside the noisy latents, as in diffusers: the mask at the resolution of the
    latents, and the latents of the image with mid-grey in the hole.

    images (B, C, H, W), masks (B, 1, H, W) -> (B, 1 + c, h, w)
    """
    z = pipeline.encode(images * (masks < 0.5))
    return torch.cat([F.interpolate(masks.to(z), size=z.shape[2:]), z], dim=1)  # nearest-neighbour


@dataclass(frozen=True)
class RepaintBackend:
    """RePaint (repaint.py) in the latents or pixels of any model.
    A schedule shorter than `jump` is resampled as a whole.
    """

    pipeline: TextToImagePipeline
    config: SamplingConfig = SamplingConfig()
    jump: int = JUMP
    times: int = TIMES

    def __call__(self, image: Tensor, mask: Tensor, prompt: str, seed: int) -> Tensor:
        check_image(image, self.pipeline)
        known, hole = self.known(image, mask), latent_hole(mask, self.pipeline.factor).to(self.pipeline.device)
        levels, noise = self.pipeline.noise_levels(self.config), Noise(seed)
        x = initial_noise(levels, tuple(known.shape), noise).to(known)
        denoise = self.pipeline.guided([prompt], self.config)
        *_, last = repaint(denoise, x, levels, known, hole, noise, min(self.jump, len(levels)), self.times)
        return self.pipeline.decode(last.x)[0]

    def known(self, image: Tensor, mask: Tensor) -> Tensor:
        """Latents of the picture, (1, c, h, w). The hole is filled with the colours of its edge before encoding,
        because a grey hole would change the latents next to it."""
        return self.pipeline.encode((image if (mask > 0).all() else nearest(image, mask))[None])


def latent_hole(mask: Tensor, factor: int) -> Tensor:
    """1 for every latent with at least one missing pixel. (1, H, W) -> (1, 1, H / f, W / f)"""
    return F.max_pool2d((mask > 0).float()[None], factor)


# ---------------------------------------------------------------------------------------------- pipelines of diffusers


@dataclass(frozen=True)
class DiffusersBackend:
    """Any pipeline that diffusers can open for inpainting; a ControlNet sees the picture with its hole."""

    pipe: Any
    config: SamplingConfig = SamplingConfig()

    def __call__(self, image: Tensor, mask: Tensor, prompt: str, seed: int) -> Tensor:
        height, width = image.shape[1:]
        check_size(height, width, getattr(self.pipe, "vae_scale_factor", 8))
        scale = self.config.guidance_scale
        scale = scale if isinstance(scale, (int, float)) else 1.0  # diffusers takes no function of the noise level
        image3 = image.expand(3, -1, -1)
        has_controlnet = getattr(self.pipe, "controlnet", None) is not None
        control = {"control_image": controlnet_image(image3[None], mask[None])} if has_controlnet else {}
        output = self.pipe(
            prompt=prompt,
            negative_prompt=self.config.negative_prompt,
            image=(image3[None] + 1) / 2,
            mask_image=mask[None],
            height=height,
            width=width,
            strength=1.0,
            num_inference_steps=Sampler.parse(self.config.sampler).steps,
            guidance_scale=scale,
            generator=torch.Generator().manual_seed(seed),
            output_type="pt",
            **control,
        )
        if any(getattr(output, "nsfw_content_detected", None) or []):
            raise UserError("the model's safety checker withheld a picture; try another --seed, or another --prompt")
        painted = output.images[0].float().cpu() * 2 - 1
        return painted if len(image) == 3 else painted.mean(0, keepdim=True)


def controlnet_image(images: Tensor, masks: Tensor) -> Tensor:
    """Input of the ControlNet, (B, C, H, W): colours from 0 to 1, and -1 in the hole, as in
    lllyasviel/control_v11p_sd15_inpaint.
    """
    return torch.where(masks > 0.5, -1.0, (images + 1) / 2)


SCHEDULERS = {  # {sampler of the course: class of diffusers}
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "heun": "HeunDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
}


def open_diffusers(model: str, config: SamplingConfig, device: str = "cpu") -> DiffusersBackend:
    """Open a local folder, a model in the hub's cache, or one from the hub."""
    return DiffusersBackend(open_pipe(diffusers.AutoPipelineForInpainting, model, config, device), config)


def open_controlnet(model: str, controlnet: str, config: SamplingConfig, device: str = "cpu") -> DiffusersBackend:
    """Open a text-to-image model and a ControlNet that was trained for it: folders or hub ids."""
    folder = controlnet_folder(controlnet)
    try:
        net = diffusers.ControlNetModel.from_pretrained(
            folder, variant=find_weights(folder).variant, local_files_only=True
        )
    except Exception as problem:  # OSError, ValueError, the hub's and safetensors' own
        raise UserError(f"the ControlNet in {controlnet} cannot be opened ({explain(problem)})") from problem
    pipe = open_pipe(diffusers.StableDiffusionControlNetInpaintPipeline, model, config, device, controlnet=net)
    check_controlnet(controlnet, net.config, pipe)
    return DiffusersBackend(pipe, config)


def check_controlnet(name: str, config: Any, pipe: Any) -> None:
    """Refuse a ControlNet of another U-Net, or of another autoencoder."""
    for key in ("block_out_channels", "cross_attention_dim", "in_channels", "layers_per_block"):
        there, here = (list(v) if isinstance(v, (list, tuple)) else v for v in (config[key], pipe.unet.config[key]))
        if there != here:
            raise UserError(
                f"the ControlNet in {name} does not fit this model: its {key} is {there}, that of the U-Net {here}; "
                "give the --model that it was trained on"
            )
    shrinks = 2 ** (len(config.conditioning_embedding_out_channels) - 1)
    if shrinks != pipe.vae_scale_factor:
        raise UserError(
            f"the ControlNet in {name} reduces pictures by a factor of {shrinks}, but the autoencoder of this model "
            f"by {pipe.vae_scale_factor}; give the --model that it was trained on"
        )


def open_pipe(kind: Any, model: str, config: SamplingConfig, device: str, **parts: Any) -> Any:
    """A pipeline of this class, with the scheduler that corresponds to config.sampler. A flow-matching model, such as
    Stable Diffusion 3, keeps its own scheduler, because the others are for other noise schedules."""
    sampler = Sampler.parse(config.sampler)
    if sampler.name not in SCHEDULERS:
        raise UserError(
            f"the engines of diffusers have no scheduler for the sampler {sampler.name}; choose a --sampler of {', '.join(SCHEDULERS)}"
        )
    quiet()
    folder = find_pipeline(model)
    try:
        pipe = kind.from_pretrained(folder, variant=variant_in(folder), local_files_only=True, **parts)
    except Exception as problem:  # OSError, ValueError, the hub's and safetensors' own
        task = "a text-to-image" if kind is diffusers.AutoPipelineForText2Image else "an inpainting"
        raise UserError(f"diffusers cannot open {model} as {task} model ({explain(problem)})") from problem
    most = pipe.scheduler.config.get("num_train_timesteps", 1000)
    if not 1 <= sampler.steps <= most:
        raise UserError(f"--sampler {config.sampler} must take 1 to {most} steps with the model in {model}")
    if not type(pipe.scheduler).__name__.startswith("FlowMatch"):  # a flow-matching model keeps its own
        pipe.scheduler = getattr(diffusers, SCHEDULERS[sampler.name]).from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def controlnet_folder(name: str) -> Path:
    """The folder of a ControlNet: a run or a folder, in the hub's cache, or downloaded from the hub."""
    path = Path(name).expanduser()
    found = next((f for f in (path / "controlnet", path / "model", path) if (f / "config.json").exists()), None)
    if found is not None:
        return found
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(
            f"{name} is no ControlNet of diffusers: there is no {path / 'config.json'}; "
            "give a folder that has one, or a hub id, owner/name"
        )
    folder = hub.cached(name, "config.json")
    if folder is None or not choose(file.name for file in folder.iterdir()):
        folder = hub.download(
            name, lambda files, _: ["config.json", *chosen_files(files)], f"give a local folder, or {hub.MIRROR}"
        )
    return folder


# ------------------------------------------------------------------------------------------------------ compositing


@dataclass(frozen=True)
class CompositedBackend:
    """A backend whose output is composited into the image without a visible edge, with all known pixels unchanged.

    backend  paints the hole
    native   pixels a side at which it paints best; other pictures are resized for it. None takes any size
    crop     pixels of the surroundings of the hole that it sees, at its native size. None shows the whole picture
    blur     pixels over which the edge of the hole is softened, on its inner side
    match    whether its colours are matched to the known pixels
    """

    backend: InpaintingBackend
    native: int | None = None
    crop: int | None = None
    blur: float = BLUR
    match: bool = True

    def __call__(self, image: Tensor, mask: Tensor, prompt: str, seed: int) -> Tensor:
        height, width = image.shape[1:]
        if self.crop is None and (self.native is None or height == width == self.native):
            return self.join(image, self.backend(image, mask, prompt, seed), mask)
        side, whole = self.native or max(height, width), max(height, width)
        padding = whole if self.crop is None else self.crop
        return inpaint_cropped(self.backend, image, mask, prompt, seed, (side, side), padding, self.join)

    def join(self, image: Tensor, painted: Tensor, mask: Tensor) -> Tensor:
        """Composite `painted` into the hole. (C, H, W)"""
        painted = painted.to(image)
        if (mask > 0).all():
            return painted
        if self.match:
            painted = levelled(image, matched(image, painted, mask), mask)
        if self.blur:
            # fades from the colours of the edge
            painted = overlay(nearest(image, mask), painted, feathered(mask, self.blur))
        return overlay(image, painted, mask)


# ---------------------------------------------------------------------------------------------------------- opening


@dataclass(frozen=True)
class BackendConfig:
    """Everything that open_backend needs to know."""

    engine: str = "inpaint"  # one of ENGINES
    model: str | None = None  # folder, file or hub id of its network; by default the shipped one
    controlnet: str | None = None  # the same for the ControlNet of the engine controlnet
    sampling: SamplingConfig = SamplingConfig()
    device: str = "cpu"
    clip: ChineseCLIP | None = None  # text encoder of a model of train_text2dish.py
    crop: int | None = None  # see CompositedBackend
    blur: float = BLUR  # see CompositedBackend
    jump: int = JUMP  # RePaint: see jump_schedule
    times: int = TIMES  # RePaint: see jump_schedule


def open_backend(cfg: BackendConfig) -> CompositedBackend:
    """Open the network of a backend and check everything about it. Raises UserError for what does not fit together."""
    check_backend_config(cfg)
    if cfg.engine in FILLS:
        return CompositedBackend(FILLS[cfg.engine], None, cfg.crop, 0.0, match=False)
    if cfg.engine == "diffusers":
        return CompositedBackend(open_diffusers(str(cfg.model), cfg.sampling, cfg.device), None, cfg.crop, cfg.blur)
    open_network = open_controlnet_backend if cfg.engine == "controlnet" else open_course_backend
    return CompositedBackend(*open_network(cfg), cfg.crop, cfg.blur)


def check_backend_config(cfg: BackendConfig) -> None:
    """Refuse settings that no network can change."""
    if cfg.engine not in ENGINES:
        raise UserError(f"unknown engine '{cfg.engine}'; choose one of {', '.join(ENGINES)}")
    if cfg.controlnet and cfg.engine != "controlnet":
        raise UserError(
            f"the engine {cfg.engine} has no ControlNet; leave out --controlnet, or choose --engine controlnet"
        )
    for flag, value in (("mask-blur", cfg.blur), ("padding-mask-crop", cfg.crop)):
        if value is not None and not 0 <= value < float("inf"):  # refuses nan, too
            raise UserError(f"--{flag} must be 0 or more, not {value:g}")
    if cfg.engine in FILLS and cfg.model:
        raise UserError(f"the engine {cfg.engine} has no network; leave out --model, or choose another --engine")
    if cfg.engine == "diffusers" and not cfg.model:
        raise UserError(
            "--engine diffusers needs --model: the folder or hub id of a Stable Diffusion inpainting model"
        )


def open_controlnet_backend(cfg: BackendConfig) -> tuple[InpaintingBackend, int]:
    """(backend, its native size)"""
    model, controlnet = cfg.model or str(DEFAULTS["controlnet"]), cfg.controlnet or str(CONTROLNET)
    for path, given in ((model, cfg.model), (controlnet, cfg.controlnet)):
        if not given and not Path(path).exists():
            raise UserError(
                f"{path} is missing; give --model, a Stable Diffusion folder, "
                "and --controlnet, a run of train_controlnet.py beside it"
            )
    backend = open_controlnet(model, controlnet, cfg.sampling, cfg.device)
    return backend, backend.pipe.unet.config.sample_size * backend.pipe.vae_scale_factor


def is_hub_id(name: str) -> bool:
    """Whether a name has the form owner/name."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and all(name.split("/"))


def open_course_backend(cfg: BackendConfig) -> tuple[InpaintingBackend, int | None]:
    """(backend with a model of this course, its native size)"""
    folder = DEFAULTS[cfg.engine]
    if cfg.model:
        path = Path(cfg.model).expanduser()
        folder = find_pipeline(cfg.model) if is_hub_id(cfg.model) and not path.exists() else path
    if not cfg.model and not folder.exists():
        raise UserError(
            f"{folder} is missing; give the network of the engine {cfg.engine} with --model, "
            "or paint without one: --engine reflect"
        )
    pipeline = open_model(folder, cfg.device, cfg.clip)
    if pipeline.is_inpainting != (cfg.engine == "inpaint"):
        other = "repaint" if cfg.engine == "inpaint" else "inpaint"
        takes = "takes no mask" if cfg.engine == "inpaint" else "was trained to paint into holes"
        unet = pipeline.unet.cfg
        raise UserError(
            f"the U-Net in {folder} {takes} ({unet.in_channels} channels in, {unet.out_channels} out), "
            f"so it is one for --engine {other}"
        )
    if cfg.engine == "inpaint":
        return InpaintBackend(pipeline, cfg.sampling), pipeline.size or None
    return RepaintBackend(pipeline, cfg.sampling, cfg.jump, cfg.times), pipeline.size or None
