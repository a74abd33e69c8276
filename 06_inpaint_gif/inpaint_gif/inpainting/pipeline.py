"""A diffusion model and all it needs to draw: the U-Net, how it was trained, what it reads, and the autoencoder, if it has one.

    artist = open_artist(Path("06_inpaint_gif/pretrained/text2dish"), clip=load_clip())
    artist.draw(["番茄炒蛋"] * 4, How(w=5))            # (4, 3, S, S) in [-1, 1]

It may read words through a text encoder of its own (chapter 4), the vector that a Chinese CLIP makes of a name (text2dish), or
nothing at all (chapter 1, whose model works on pixels: then there is no autoencoder). A U-Net with 2 c + 1 channels paints into
holes: it is shown c channels of noisy latents, 1 of the mask, and c of what is to stay.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from common.diffusion.denoiser import ClipMode
from common.diffusion.guidance import Guided, Scale
from common.diffusion.sampler_spec import Sampler
from common.diffusion.samplers import Denoise, Step, initial_noise
from common.diffusion.schedules import NoiseLevels, Schedule
from common.errors import UserError
from common.io.files import read_json, write_json
from common.io.progress import with_progress
from common.models.diffusers_vae import load_vae
from common.models.find_model import find_root
from common.models.model_folder import load_model
from common.models.text.encoders import load_text
from common.models.unet import UNet
from common.models.vae import AutoencoderKL
from common.random import Noise
from inpaint_gif.clip.formats import Form
from inpaint_gif.clip.model import DOORS, ChineseClip, load_clip

BATCH = 32  # pictures at a time; with guidance, the U-Net sees twice as many
READS = "text2dish.json"  # in the folder of a model that reads vectors: of which CLIP


class Reader(Protocol):
    """What turns texts into what a U-Net looks at."""

    dim: int

    def __call__(self, captions: Sequence[str]) -> Tensor: ...  # (B, M, D)


@dataclass(frozen=True)
class How:
    """How to draw, whatever is drawn."""

    w: Scale = 5.0                  # guidance scale; 1 is off
    negative: str = ""              # what is not wanted
    sampler: str = "dpmpp_2m:20"
    rescale: float = 0.0            # phi of guidance rescale; 0 is off


# ---------------------------------------------------------------------------------------------------- what names become


class NameReader:
    """A name, through a Chinese CLIP, as two tokens for cross-attention: its vector, and a zero to look away to.

    With the vector alone every pixel would have to look at it, and softmax over one token is 1: the same would be added to
    plate and table alike. The zero adds nothing, so each pixel chooses how much of the name concerns it. The empty name is
    twice the zero. CLIP's vectors have length 1; times sqrt(D), their components are as large as the U-Net expects.
    """

    def __init__(self, clip: ChineseClip):
        self.clip, self.dim = clip, clip.dim

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """(B, 2, D)"""
        said = torch.tensor([[bool(text.strip())] for text in captions], device=self.clip.device)
        return tokens(self.clip.encode_text(captions) * said)


def tokens(vectors: Tensor) -> Tensor:
    """Unit vectors, or zero for the empty name -> (B, 2, D). vectors (B, D)"""
    return torch.stack([vectors * vectors.shape[-1] ** 0.5, torch.zeros_like(vectors)], dim=-2)


def fingerprint(form: Form) -> str:
    """32 hexadecimal digits of all that a CLIP's vector of a name depends on, to half precision: so a CLIP that is stored in
    half precision has the fingerprint of the one it was made from."""
    digest = hashlib.sha256("\n".join(form.words).encode())
    for name, weight in sorted(form.state.items()):
        if name.startswith("bert.") or name == "text_projection":
            digest.update(f"{name} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().to("cpu", torch.float16).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


# --------------------------------------------------------------------------------------------------------------- drawing


@dataclass(frozen=True)
class Artist:
    vae: AutoencoderKL | None
    unet: UNet
    schedule: Schedule
    prediction: str
    clip_x0: ClipMode          # latents know no bounds, pixels do
    reader: Reader | None  # None draws whatever comes

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def channels(self) -> int:
        """Of the images it draws."""
        return self.vae.cfg.image_channels if self.vae else self.unet.cfg.out_channels

    @property
    def factor(self) -> int:
        """Pixels a side that one latent stands for."""
        return self.vae.cfg.factor if self.vae else 1

    @property
    def size(self) -> int:
        """Pixels a side of what it was trained for; 0 if its folder does not say."""
        return self.unet.cfg.size * self.factor or (self.vae.cfg.size if self.vae else 0)

    @property
    def paints_holes(self) -> bool:
        return self.unet.cfg.in_channels > self.unet.cfg.out_channels

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, c, H / f, W / f) of unit variance: the most probable latents, so that the same picture
        is always the same latents."""
        images = images.to(self.device)
        return self.vae.scale(self.vae.encode(images).mode()) if self.vae else images

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """(B, c, h, w) of unit variance -> (B, C, f h, f w) in [-1, 1], on the CPU"""
        if not z.isfinite().all():
            raise UserError("the sampled latents hold NaN or infinite values; try a smaller guidance scale, or another model")
        return (self.vae.decode(self.vae.unscale(z)) if self.vae else z).clamp(-1, 1).cpu()

    @torch.no_grad()
    def guided(self, prompts: Sequence[str], how: How, extra: Tensor | None = None) -> Guided:
        """The U-Net as a sampler wants it. extra: what it is shown besides the noisy latents, (1, E, h, w)."""
        if self.reader is None:
            return Guided(self.unet.eval(), self.prediction, {}, {}, 1.0, self.clip_x0, extra=extra)
        cond, uncond = ({"text": self.reader(list(words)).to(self.device)} for words in (prompts, [how.negative]))
        return Guided(self.unet.eval(), self.prediction, cond, uncond, how.w, self.clip_x0, how.rescale, extra=extra)

    def noise_levels(self, how: How) -> NoiseLevels:
        return self.schedule.noise_levels(Sampler.parse(how.sampler).steps)

    def steps(self, prompts: Sequence[str], how: How, shape: tuple[int, int], seed: tuple[int, ...], extra: Tensor | None = None) -> Iterator[Step]:
        """From noise to latents, step by step. shape: height and width of the latents."""
        return self.denoised(self.guided(prompts, how, extra), len(prompts), how, shape, seed)

    @torch.no_grad()
    def denoised(self, denoise: Denoise, n: int, how: How, shape: tuple[int, int], seed: tuple[int, ...]) -> Iterator[Step]:
        """The same with any denoiser, such as one that is told something else here and there (generate.py)."""
        sampler, path, noise = Sampler.parse(how.sampler), self.noise_levels(how), Noise(*seed)
        x = initial_noise(path, (n, self.unet.cfg.out_channels, *shape), noise).to(self.device)
        yield from sampler.trajectory(denoise, x, path, noise)

    def draw(self, prompts: Sequence[str], how: How = How(), seed: int = 0, size: int | None = None) -> Tensor:
        """One picture of each prompt, (N, C, S, S) in [-1, 1] on the CPU. Picture i begins with the same noise whatever its prompt."""
        side, drawn = (size or self.size) // self.factor, []
        for first in with_progress("drawing", range(0, len(prompts), BATCH), unit="batch"):
            *_, last = self.steps(prompts[first : first + BATCH], how, (side, side), (seed, first))
            drawn.append(self.decode(last.x))
        return torch.cat(drawn)

    def remarks(self, prompt: str) -> list[str]:
        """What whoever typed this prompt should know. (Of names, dish_names.take_order says it.)"""
        return self.reader.tokenizer.remarks(prompt) if hasattr(self.reader, "tokenizer") else []


# --------------------------------------------------------------------------------------------------------------- folders


def open_artist(folder: Path, device: str | torch.device = "cpu", clip: ChineseClip | None = None) -> Artist:
    """A run folder, or a folder or file of Stable Diffusion; every key checked.

    clip  the one that reads for a model of text2dish; by default the one in its folder, else the shipped one
    """
    root = find_root(Path(folder))
    unet, schedule, prediction, clip_x0 = load_model(root, device)
    vae = load_vae(root / "vae", device) if (root / "vae").is_dir() else None
    check_channels(root, unet, vae)
    return Artist(vae, unet, schedule, prediction, clip_x0 if vae is None else False, open_reader(root, unet, device, clip))


def check_channels(folder: Path, unet: UNet, vae: AutoencoderKL | None) -> None:
    """Refuse networks that were not made for each other."""
    c, cfg = vae.cfg.latent_channels if vae else unet.cfg.out_channels, unet.cfg
    if cfg.out_channels != c or cfg.in_channels not in (c, 2 * c + 1):
        whose = f"the autoencoder in {folder} makes latents with {c} channels, but its" if vae else "the"
        raise UserError(f"{whose} U-Net takes {cfg.in_channels} channels and gives {cfg.out_channels}; {c} and {c} draw, {2 * c + 1} and {c} paint into holes")


def check_draws(folder: Path, artist: Artist) -> None:
    """Refuse a model that cannot make a whole picture of what it is told."""
    if artist.paints_holes or artist.reader is None:
        why = "paints into holes" if artist.paints_holes else "reads no text"
        raise UserError(f"the U-Net in {folder} {why}, so it cannot draw a dish from its name; give a model that can, such as a run of train_text2dish.py")


def open_reader(root: Path, unet: UNet, device: str | torch.device, clip: ChineseClip | None) -> Reader | None:
    """What reads for the U-Net, if it looks at text at all; one of another width, or another CLIP, is refused."""
    if not unet.cfg.text_dim:
        return None
    if (root / READS).exists():
        reader = NameReader(clip or clip_of(root, device))
        check_clip(root, reader.clip)
    elif (root / "text_encoder").is_dir():
        reader = load_text(root).to(device).eval().requires_grad_(False)
    else:
        raise UserError(f"{root} holds no text encoder, but its U-Net is conditioned on text: {root / 'text_encoder'} or {READS} was expected")
    if reader.dim != unet.cfg.text_dim:
        raise UserError(f"the text encoder of {root} gives vectors of {reader.dim} numbers, but its U-Net expects {unet.cfg.text_dim}")
    return reader


def clip_of(folder: Path, device: str | torch.device = "cpu", name: str | None = None, door: str = DOORS[0]) -> ChineseClip:
    """The CLIP of this name; without one the CLIP in the model's folder, else the shipped one."""
    own = find_root(Path(folder)) / "clip"
    return load_clip(name or (own if own.is_dir() else "pretrained"), door, device)


def remember_clip(root: Path, clip: ChineseClip) -> None:
    """Write down which CLIP a model reads through."""
    write_json(root / READS, {"clip": fingerprint(clip.form), "dim": clip.dim, "trained_with": clip.form.source})


def check_clip(root: Path, clip: ChineseClip) -> None:
    known = read_json(root / READS)
    if known.get("dim") != clip.dim:
        raise UserError(f"{root} reads vectors of {known.get('dim')} numbers, but this CLIP ({clip.form.source}) gives {clip.dim}. "
                        "Without --clip, the CLIP in its folder or the shipped one is used; to use this one, train a model for it: python 06_inpaint_gif/train_text2dish.py --clip ...")  # fmt: skip
    if known.get("clip") != fingerprint(clip.form):
        raise UserError(f"{root} was trained with another CLIP ({known.get('trained_with')}), and the vectors of this one ({clip.form.source}) mean nothing to it. "
                        "Without --clip, the CLIP in its folder or the shipped one is used; to use this one, train a model for it: python 06_inpaint_gif/train_text2dish.py --clip ...")  # fmt: skip


def count(module: nn.Module) -> int:
    """How many weights it has."""
    return sum(parameter.numel() for parameter in module.parameters())
