"""Whatever paints what is missing, behind one interface: engine(image, mask, prompt, seed) -> image (camera.Engine).

  inpaint    a U-Net that was trained for it (train_inpaint.py): besides the noisy latents it is shown the mask and what is known
  repaint    RePaint with any diffusion model of latents or pixels, with text or without; nobody trained it to fill holes
  controlnet a model that draws, and beside it a ControlNet that sees the picture with its hole (train_controlnet.py)
  diffusers  any Stable Diffusion for inpainting, as a folder, a file or a hub id, through diffusers' AutoPipelineForInpainting
  nearest, reflect    no network: the edge of the hole goes on (edge_fill.py)

All give back a whole picture. `Joined` makes it fit: the colours are bent towards what is known along the edge, the edge is
softened on its inner side, and every known pixel is put back exactly.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from common.diffusion.sampler_spec import Sampler
from common.diffusion.samplers import initial_noise
from common.errors import UserError, explain
from common.io import hub
from common.io.weight_files import choose, chosen_files, find_weights, variant_in
from common.models.pipeline_folder import find_pipeline, quiet
from common.random import Noise
from inpaint_gif.clip.model import ChineseClip
from inpaint_gif.inpainting.compositing import check_size, feathered, inpaint_cropped, matched, overlay
from inpaint_gif.inpainting.edge_fill import FILLS, nearest
from inpaint_gif.inpainting.pipeline import Artist, How, open_artist
from inpaint_gif.inpainting.repaint import JUMP, TIMES, repaint

CHAPTER = Path(__file__).parents[2]
ENGINES = ("inpaint", "repaint", "controlnet", "diffusers", *FILLS)
DEFAULTS = {"inpaint": CHAPTER / "pretrained" / "inpaint", "repaint": CHAPTER / "pretrained" / "text2dish",
            "controlnet": CHAPTER.parent / "04_latent_sd" / "pretrained"}  # fmt: skip
CONTROLNET = CHAPTER / "pretrained" / "controlnet"
BLUR = 1.0  # pixels over which an edge is softened

Engine = Callable[[Tensor, Tensor, str, int], Tensor]


# ------------------------------------------------------------------------------------------------------ the three engines


@dataclass(frozen=True)
class NineChannels:
    """Stable Diffusion's way (Rombach et al. 2022, section 4.5): U-Net([noisy latents, mask, latents of the masked image])."""

    artist: Artist
    how: How = How()

    def __call__(self, image: Tensor, mask: Tensor, prompt: str, seed: int) -> Tensor:
        check_image(image, self.artist)
        return self.paint(image[None], mask[None], [prompt], seed)[0]

    def paint(self, images: Tensor, masks: Tensor, prompts: Sequence[str], seed: int) -> Tensor:
        """Several at once. images (B, C, H, W), masks (B, 1, H, W) -> (B, C, H, W) on the CPU"""
        shown = shown_to_unet(self.artist, images, masks)
        *_, last = self.artist.steps(prompts, self.how, tuple(shown.shape[2:]), (seed,), shown)
        return self.artist.decode(last.x)


def check_image(image: Tensor, artist: Artist) -> None:
    """Refuse a picture that this model cannot take."""
    check_size(*image.shape[1:], artist.factor)
    if len(image) != artist.channels:
        raise UserError(f"this model paints pictures with {count_of(artist.channels)}, and the picture has {count_of(len(image))}; give another --model")


def count_of(channels: int) -> str:
    return {1: "one channel (grey)", 3: "three channels (colour)"}.get(channels, f"{channels} channels")


def shown_to_unet(artist: Artist, images: Tensor, masks: Tensor) -> Tensor:
    """What an inpainting U-Net is shown besides the noise, as diffusers makes it: the mask, one pixel for each latent, and the
    latents of the image with mid-grey where the mask is white.

    images (B, C, H, W), masks (B, 1, H, W) -> (B, 1 + c, h, w)
    """
    z = artist.encode(images * (masks < 0.5))
    return torch.cat([F.interpolate(masks.to(z), size=z.shape[2:]), z], dim=1)  # by the nearest pixel


@dataclass(frozen=True)
class Repaint:
    """RePaint (repaint.py) in the latents of any model, or in its pixels. A way shorter than the jump is walked again as a whole."""

    artist: Artist
    how: How = How()
    jump: int = JUMP
    times: int = TIMES

    def __call__(self, image: Tensor, mask: Tensor, prompt: str, seed: int) -> Tensor:
        check_image(image, self.artist)
        known, hole = self.known(image, mask), latent_hole(mask, self.artist.factor).to(self.artist.device)
        path, noise = self.artist.noise_levels(self.how), Noise(seed)
        x = initial_noise(path, tuple(known.shape), noise).to(known)
        denoise = self.artist.guided([prompt], self.how)
        *_, last = repaint(denoise, x, path, known, hole, noise, min(self.jump, len(path)), self.times)
        return self.artist.decode(last.x)[0]

    def known(self, image: Tensor, mask: Tensor) -> Tensor:
        """The latents of the picture. The encoder sees the colours of the edge in the hole: grey would shine through into the
        latents next to it. (1, c, h, w)"""
        return self.artist.encode((image if (mask > 0).all() else nearest(image, mask))[None])


def latent_hole(mask: Tensor, factor: int) -> Tensor:
    """1 for every latent of which any pixel is missing. (1, H, W) -> (1, 1, H / f, W / f)"""
    return F.max_pool2d((mask > 0).float()[None], factor)


@dataclass(frozen=True)
class Diffusers:
    """Any pipeline that diffusers can make an inpainting one of."""

    pipe: Any
    how: How = How()

    def __call__(self, image: Tensor, mask: Tensor, prompt: str, seed: int) -> Tensor:
        height, width = image.shape[1:]
        check_size(height, width, getattr(self.pipe, "vae_scale_factor", 8))
        scale = self.how.w if isinstance(self.how.w, (int, float)) else 1.0
        image3 = image.expand(3, -1, -1)
        found = self.pipe(
            prompt=prompt, negative_prompt=self.how.negative, image=(image3[None] + 1) / 2, mask_image=mask[None],
            height=height, width=width, strength=1.0, num_inference_steps=Sampler.parse(self.how.sampler).steps, guidance_scale=scale,
            generator=torch.Generator().manual_seed(seed), output_type="pt", **self.more(image3, mask),
        )  # fmt: skip
        if any(getattr(found, "nsfw_content_detected", None) or []):
            raise UserError("the model's safety checker withheld a picture; try another --seed, or another --prompt")
        painted = found.images[0].float().cpu() * 2 - 1
        return painted if len(image) == 3 else painted.mean(0, keepdim=True)

    def more(self, image: Tensor, mask: Tensor) -> dict[str, Any]:
        """What else this pipeline is to be shown."""
        return {}


class Controlled(Diffusers):
    """A pipeline with a ControlNet beside it, which is shown the picture with its hole."""

    def more(self, image: Tensor, mask: Tensor) -> dict[str, Any]:
        return {"control_image": shown_to_controlnet(image[None], mask[None])}


def shown_to_controlnet(images: Tensor, masks: Tensor) -> Tensor:
    """Colours from 0 to 1, and -1 in the hole: so does lllyasviel/control_v11p_sd15_inpaint mark it. (B, C, H, W)"""
    return torch.where(masks > 0.5, -1.0, (images + 1) / 2)


SCHEDULERS = {"ddim": "DDIMScheduler", "ddpm": "DDPMScheduler", "dpmpp_2m": "DPMSolverMultistepScheduler", "heun": "HeunDiscreteScheduler",
              "euler_a": "EulerAncestralDiscreteScheduler"}  # fmt: skip


def open_diffusers(model: str, how: How, device: str = "cpu") -> Diffusers:
    """A local folder, what the hub's cache holds, or the hub."""
    import diffusers

    return Diffusers(open_pipe(diffusers.AutoPipelineForInpainting, model, how, device), how)


def open_controlled(model: str, controlnet: str, how: How, device: str = "cpu") -> Controlled:
    """A model that draws, and a ControlNet that was trained beside it: folders or hub ids."""
    import diffusers

    folder = controlnet_folder(controlnet)
    try:
        net = diffusers.ControlNetModel.from_pretrained(folder, variant=find_weights(folder).variant, local_files_only=True)
    except Exception as problem:  # OSError, ValueError, the hub's and safetensors' own
        raise UserError(f"the ControlNet in {controlnet} cannot be opened ({explain(problem)})") from problem
    pipe = open_pipe(diffusers.StableDiffusionControlNetInpaintPipeline, model, how, device, controlnet=net)
    check_controlnet(controlnet, net.config, pipe)
    return Controlled(pipe, how)


def check_controlnet(name: str, config: Any, pipe: Any) -> None:
    """Refuse a ControlNet of another U-Net, or of another autoencoder."""
    for key in ("block_out_channels", "cross_attention_dim", "in_channels", "layers_per_block"):
        there, here = (list(v) if isinstance(v, (list, tuple)) else v for v in (config[key], pipe.unet.config[key]))
        if there != here:
            raise UserError(f"the ControlNet in {name} does not fit this model: its {key} is {there}, that of the U-Net {here}; give the --model that it was trained on")
    shrinks = 2 ** (len(config.conditioning_embedding_out_channels) - 1)
    if shrinks != pipe.vae_scale_factor:
        raise UserError(f"the ControlNet in {name} reduces pictures by a factor of {shrinks}, but the autoencoder of this model by {pipe.vae_scale_factor}; give the --model that it was trained on")


def open_pipe(kind: Any, model: str, how: How, device: str, **parts: Any) -> Any:
    """A pipeline of this kind, with the scheduler that goes with how.sampler."""
    import diffusers

    sampler = Sampler.parse(how.sampler)
    if sampler.name not in SCHEDULERS:
        raise UserError(f"the engines of diffusers have no scheduler for the sampler {sampler.name}; choose a --sampler of {', '.join(SCHEDULERS)}")
    quiet()
    folder = find_pipeline(model)
    try:
        pipe = kind.from_pretrained(folder, variant=variant_in(folder), local_files_only=True, **parts)
    except Exception as problem:  # OSError, ValueError, the hub's and safetensors' own
        raise UserError(f"diffusers cannot open {model} as an inpainting model ({explain(problem)})") from problem
    most = pipe.scheduler.config.get("num_train_timesteps", 1000)
    if not 1 <= sampler.steps <= most:
        raise UserError(f"--sampler {how.sampler} must take 1 to {most} steps with the model in {model}")
    pipe.scheduler = getattr(diffusers, SCHEDULERS[sampler.name]).from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def controlnet_folder(name: str) -> Path:
    """Where a ControlNet lies: a run or a folder, the hub's cache, or the hub."""
    path = Path(name).expanduser()
    found = next((f for f in (path / "controlnet", path / "model", path) if (f / "config.json").exists()), None)
    if found is not None:
        return found
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(f"{name} is no ControlNet of diffusers: there is no {path / 'config.json'}; give a folder that has one, or a hub id, owner/name")
    folder = hub.cached(name, "config.json")
    if folder is None or not choose(file.name for file in folder.iterdir()):
        folder = hub.download(name, lambda files, _: ["config.json", *chosen_files(files)], f"give a local folder, or {hub.MIRROR}")
    return folder


# --------------------------------------------------------------------------------------------------------- what joins them


@dataclass(frozen=True)
class Joined:
    """An engine whose pictures join what is there without a line, and leave it exactly as it is.

    engine  paints
    native  pixels a side that it paints best; other pictures are shrunk or enlarged for it. None takes any size
    crop    show it only the surroundings of the hole, so many pixels of them, at its native size. None shows it all
    blur    pixels over which the edge of the hole is softened, on its inner side: what is known stays as it is
    match   bend its colours towards what is known
    """

    engine: Engine
    native: int | None = None
    crop: int | None = None
    blur: float = BLUR
    match: bool = True

    def __call__(self, image: Tensor, mask: Tensor, prompt: str, seed: int) -> Tensor:
        height, width = image.shape[1:]
        if self.crop is None and (self.native is None or height == width == self.native):
            return self.join(image, self.engine(image, mask, prompt, seed), mask)
        side, all_of_it = self.native or max(height, width), max(height, width)
        padding = all_of_it if self.crop is None else self.crop
        return inpaint_cropped(self.engine, image, mask, prompt, seed, (side, side), padding, self.join)

    def join(self, image: Tensor, painted: Tensor, mask: Tensor) -> Tensor:
        painted = painted.to(image)
        if (mask > 0).all():
            return painted
        if self.match:
            painted = matched(image, painted, mask)
        if self.blur:
            painted = overlay(nearest(image, mask), painted, feathered(mask, self.blur))  # from the colours at the edge to its own
        return overlay(image, painted, mask)


@dataclass(frozen=True)
class Settings:
    """What open_engine needs to know."""

    name: str = "inpaint"
    model: str | None = None          # where its network is; by default the shipped one
    controlnet: str | None = None     # for the engine of that name, where that is
    how: How = How()
    device: str = "cpu"
    clip: ChineseClip | None = None   # the one that reads for a model of text2dish
    crop: int | None = None
    blur: float = BLUR
    jump: int = JUMP
    times: int = TIMES


def open_engine(want: Settings) -> Joined:
    """One of ENGINES, with its network opened and everything about it checked."""
    if want.name not in ENGINES:
        raise UserError(f"unknown engine '{want.name}'; choose one of {', '.join(ENGINES)}")
    if want.controlnet and want.name != "controlnet":
        raise UserError(f"the engine {want.name} has no ControlNet; leave out --controlnet, or choose --engine controlnet")
    for flag, value in (("mask-blur", want.blur), ("padding-mask-crop", want.crop)):
        if value is not None and not 0 <= value < float("inf"):  # nan is neither
            raise UserError(f"--{flag} must be 0 or more, not {value:g}")
    if want.name in FILLS:
        if want.model:
            raise UserError(f"the engine {want.name} has no network; leave out --model, or choose another --engine")
        return Joined(FILLS[want.name], None, want.crop, 0.0, match=False)
    if want.name == "diffusers":
        if not want.model:
            raise UserError("--engine diffusers needs --model: the folder or hub id of a Stable Diffusion inpainting model")
        engine = open_diffusers(want.model, want.how, want.device)
        return Joined(engine, None, want.crop, want.blur)
    if want.name == "controlnet":
        model, control = want.model or str(DEFAULTS["controlnet"]), want.controlnet or str(CONTROLNET)
        for path, given in ((model, want.model), (control, want.controlnet)):
            if not given and not Path(path).exists():
                raise UserError(f"{path} is missing; give --model, a Stable Diffusion folder, and --controlnet, a run of train_controlnet.py beside it")
        engine = open_controlled(model, control, want.how, want.device)
        return Joined(engine, engine.pipe.unet.config.sample_size * engine.pipe.vae_scale_factor, want.crop, want.blur)
    folder = Path(want.model).expanduser() if want.model else DEFAULTS[want.name]
    if not want.model and not folder.exists():
        raise UserError(f"{folder} is missing; give the network of the engine {want.name} with --model, or paint without one: --engine reflect")
    artist = open_artist(folder, want.device, want.clip)
    if artist.paints_holes != (want.name == "inpaint"):
        other = "repaint" if want.name == "inpaint" else "inpaint"
        takes = "takes no mask" if want.name == "inpaint" else "was trained to paint into holes"
        raise UserError(f"the U-Net in {folder} {takes} ({artist.unet.cfg.in_channels} channels in, {artist.unet.cfg.out_channels} out), so it is one for --engine {other}")
    engine = NineChannels(artist, want.how) if want.name == "inpaint" else Repaint(artist, want.how, want.jump, want.times)
    return Joined(engine, artist.size or None, want.crop, want.blur)
