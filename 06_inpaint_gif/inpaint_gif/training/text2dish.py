"""Training of the text-to-dish model (train_text2dish.py):
a U-Net on latents, conditioned on the CLIP embeddings of dish names.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.cli import pick_device
from common.data import Images, load
from common.diffusion.guidance import drop_captions
from common.diffusion.losses import diffusion_loss
from common.diffusion.sampler_spec import Sampler
from common.diffusion.schedules import Schedule, make_schedule
from common.errors import UserError
from common.io.files import read_json, write_json
from common.io.state_dict import count_parameters
from common.models.find_model import find_root
from common.models.model_folder import Model, grow, load_model, load_vae, same_build, save_model, save_vae
from common.models.pipeline import SamplingConfig, TextToImagePipeline
from common.models.text.conditional import ConditionalUNet
from common.models.unet import UNet, zero_init
from common.models.unet_config import text_unet
from common.models.vae import AutoencoderKL
from common.random import BatchRandom
from common.training.latents import check_fit, check_fit_before, encode_images, sample
from common.training.loop import LossTerms, State
from common.training.record import check_record, record_of, start_of
from common.training.run import loss_curve_and_model, make_accelerator, run_training
from common.training.text_conditioning import draw_validation
from inpaint_gif.clip.dish_names import HELD_OUT, LEARNED, name_embeddings, training_captions
from inpaint_gif.clip.formats import save_folder
from inpaint_gif.clip.model import ChineseCLIP, load_clip
from inpaint_gif.clip.name_encoder import (
    CLIP_RECORD,
    CLIPNameEncoder,
    clip_fingerprint,
    name_tokens,
    uses_clip,
    write_clip_record,
)
from inpaint_gif.clip.retrieval import top1_accuracy
from inpaint_gif.clip.trainer import one_of_each, with_chinese_captions
from inpaint_gif.training.flags import Text2DishFlags
from inpaint_gif.training.latent_dataset import CaptionTable, ConditionedLatents, encode_captions

DISHES = 8000  # default of --n: 100 of each dish
SCRATCH = (32, 64)  # default of --widths for an untrained U-Net
HEIGHT = 260  # pixels of the sample pictures
# weights that depend on the text encoder, so those of another one are of no use
TEXT_WEIGHTS = ("attn2.to_k", "attn2.to_v")


def train_text2dish(flags: Text2DishFlags) -> None:
    """Train with settled flags."""
    device = pick_device(flags.device)
    root = start_of(flags, flags.model)
    clip = open_clip(flags, root, device)
    vae = load_vae(start_of(flags, flags.vae or flags.model), device)
    size = flags.size or vae.cfg.size
    flag = "--size" if flags.size else "--model"
    check_fit_before(vae, (flags.data,), size, flag)
    pipeline = TextToImagePipeline(*new_unet(flags, vae, size, clip), CLIPNameEncoder(clip), vae)
    pipeline.schedule.noise_levels(Sampler.parse_plain(flags.sampler).steps)  # refuses impossible numbers of steps now
    images, captions = load_captioned(flags, size)
    record = record_of(images.pixels, captions)
    check_record(flags, record)
    check_fit(vae, images, flag)
    accelerator = make_accelerator(flags.precision, device)
    latents = encode_images(vae, images)
    data = ConditionedLatents(latents, {"embeddings": encode_names(clip, captions).batch})  # (B, K, D)
    sampling = SamplingConfig(flags.guidance, sampler=flags.sampler, seed=flags.seed)

    def trained(state: State) -> TextToImagePipeline:
        return replace(pipeline, unet=state.ema.unet)

    def draw(state: State, path: Path) -> Path:
        return draw_validation(trained(state), flags.names, sampling, path, HEIGHT)

    def finish(state: State) -> dict[str, object]:
        pictures = {"plain, guided": draw(state, flags.run_dir / "samples.png"), **loss_curve_and_model(flags.run_dir)}
        if flags.data == "dishes":
            print_recognition(trained(state), clip, flags)
        return pictures | {"a film": f'python 06_inpaint_gif/make_gif.py "{flags.names[0]}" --dish {flags.run_dir}'}

    run_training(
        "06_inpaint_gif/train_text2dish.py",
        flags,
        ConditionalUNet(pipeline.unet),
        data,
        NameLoss(pipeline, clip, flags.caption_dropout, flags.run_dir),
        accelerator,
        record,
        introduction(flags, images, pipeline, clip, device),
        save=lambda state, folder: save_text2dish(folder, trained(state)),
        draw=draw,
        finish=finish,
        save_start=lambda folder: save_text2dish(folder, pipeline),
    )


def introduction(
    flags: Text2DishFlags, images: Images, pipeline: TextToImagePipeline, clip: ChineseCLIP, device: str
) -> str:
    c, side = pipeline.latent_channels, images.size // pipeline.factor
    begun = "untrained" if flags.scratch else f"begun from {flags.model}"
    lines = [
        f"{flags.data}: {len(images):,} images of {images.size}x{images.size} as latents {c} x {side} x {side}; "
        f"U-Net with {count_parameters(pipeline.unet):,} weights, {begun}, conditioned on name embeddings of {clip.dim} numbers, on {device}"
    ]
    lines += [f"  picture {i}: {name or '(no name)'}" for i, name in enumerate(flags.names, 1)]
    return "\n".join(lines)


# ----------------------------------------------------------------------------------------------------------- the data


def load_captioned(flags: Text2DishFlags, size: int) -> tuple[Images, Sequence[Sequence[str]]]:
    """Images and the captions of each: drawn dishes with names but the held-out ones,
    or images with their own caption.
    """
    if flags.data == "dishes":
        n = flags.n or DISHES
        return load("dishes", size, n=n), training_captions(n, flags.seed)
    images = with_chinese_captions(load(flags.data, size, flags.data_dir, n=flags.n, channels=3, captions=True))
    return images, [(caption,) for caption in images.captions]


def encode_names(clip: ChineseCLIP, captions: Sequence[Sequence[str]]) -> CaptionTable:
    """CLIP embeddings of all captions."""
    return encode_captions(lambda texts: clip.encode_text(texts).cpu(), captions)


# -------------------------------------------------------------------------------------------------------- the network


def open_clip(flags: Text2DishFlags, root: Path, device: str) -> ChineseCLIP:
    """The CLIP of --clip; a resumed run, whose folder `root` is, has a copy of it."""
    if root == flags.model:
        return load_clip(flags.clip, flags.backend, device)
    clip = load_clip(root / "clip", flags.backend, device)
    clip.checkpoint = clip.checkpoint._replace(source=read_json(root / CLIP_RECORD)["trained_with"])
    return clip


def new_unet(flags: Text2DishFlags, vae: AutoencoderKL, size: int, clip: ChineseCLIP) -> tuple[UNet, Schedule, str]:
    """The U-Net to begin with, its schedule and its prediction: an untrained one with --scratch; else one with the
    weights of --model. A resumed run has a copy of --model. size: pixels a side of the images
    """
    torch.manual_seed(flags.seed)
    c, side = vae.cfg.latent_channels, size // vae.cfg.factor
    if flags.scratch:
        widths = flags.widths or SCRATCH
        return zero_init(UNet(text_unet(side, c, widths, clip.dim))), make_schedule("cosine"), "v"
    root = find_root(start_of(flags, flags.model))
    other, schedule, prediction, _ = load_model(root)
    if other.cfg.in_channels != c or other.cfg.out_channels != c:
        raise UserError(
            f"the U-Net in {flags.model} takes {other.cfg.in_channels} channels and gives {other.cfg.out_channels}, "
            f"but the latents of its autoencoder have {c}; choose another --model, or --scratch"
        )
    if not other.cfg.text_dim:
        raise UserError(f"the U-Net in {flags.model} is not conditioned on text; choose another --model, or --scratch")
    unet = UNet(replace(other.cfg, text_dim=clip.dim, size=side))
    copy_weights(unet, other, reads_the_same_names(root, clip))
    return grown(unet, flags.widths), schedule, prediction


def reads_the_same_names(root: Path, clip: ChineseCLIP) -> bool:
    """Whether the model in this folder was trained with this CLIP, so that it understands its embeddings."""
    return uses_clip(root) and read_json(root / CLIP_RECORD).get("clip") == clip_fingerprint(clip.checkpoint)


def copy_weights(unet: UNet, other: UNet, all_of_them: bool) -> None:
    """Copy the weights of a U-Net of the same architecture: all of them, or all but TEXT_WEIGHTS."""
    if unlike := same_build(unet, other, free=("size", "text_dim")):
        raise UserError(
            f"the U-Net of --model has another architecture ({'; '.join(unlike)}); choose another --model, or --scratch"
        )
    left_out = () if all_of_them else TEXT_WEIGHTS
    state = {key: value for key, value in other.state_dict().items() if not any(part in key for part in left_out)}
    unet.load_state_dict(state, strict=all_of_them)


def grown(unet: UNet, widths: tuple[int, ...] | None) -> UNet:
    """The same U-Net, or one of these widths, which have one more in front (model_folder.grow)."""
    cfg = unet.cfg
    if widths is None or widths == cfg.channels:
        return unet
    attention, heads = (False, *cfg.attention), (1, *cfg.heads) if cfg.heads else None
    if widths != (cfg.channels[0], *cfg.channels):
        raise UserError(
            f"the U-Net of --model has the widths {' '.join(map(str, cfg.channels))}, and grows to "
            f"{cfg.channels[0]} {' '.join(map(str, cfg.channels))}, not to {' '.join(map(str, widths))}; "
            "leave out --widths, or give --scratch"
        )
    return grow(UNet(replace(cfg, channels=widths, attention=attention, heads=heads)), unet)


class NameLoss:
    """The diffusion loss, conditioned on one of the names of each image, or at random on none.

    Checkpoints contain the fingerprint of the CLIP (loop.Stateful),
    because the embeddings of another one mean nothing to the U-Net.
    """

    def __init__(self, pipeline: TextToImagePipeline, clip: ChineseCLIP, caption_dropout: float, run_dir: Path):
        self.schedule, self.prediction = pipeline.schedule, pipeline.prediction
        self.caption_dropout, self.run_dir = caption_dropout, run_dir
        self.models = {"clip": clip_fingerprint(clip.checkpoint), "scaling_factor": pipeline.vae.cfg.scaling_factor}

    def __call__(self, net: nn.Module, batch: dict[str, Tensor], draw: BatchRandom) -> LossTerms:
        z0 = sample(batch, draw)  # (B, c, h, w)
        embedding = one_of_each(batch["embeddings"], draw)  # (B, D)
        u, eps = draw.stratified(len(z0)), draw.randn(z0.shape)
        embedding = drop_captions(embedding, torch.zeros_like(embedding[0]), draw.rand(len(z0)), self.caption_dropout)
        per_sample = diffusion_loss(net, self.schedule, self.prediction, z0, u, eps, text=name_tokens(embedding))
        return LossTerms(per_sample, u)

    def state_dict(self) -> dict[str, Any]:
        return self.models

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state != self.models:
            raise UserError(
                f"{self.run_dir} was trained with another CLIP or autoencoder than it would go on with; "
                f"put {self.run_dir / 'start'} back as it was"
            )


def save_text2dish(folder: Path, pipeline: TextToImagePipeline, dtype: torch.dtype = torch.float32) -> None:
    """Write the U-Net, how it was trained, its autoencoder, and its CLIP."""
    clip = pipeline.text_encoder.clip
    save_model(folder, Model(pipeline.unet, pipeline.schedule, pipeline.prediction, clip_x0=False), dtype)
    save_vae(folder / "vae", pipeline.vae, dtype)
    save_folder(folder / "clip", clip.checkpoint)
    write_clip_record(folder, clip)


# ------------------------------------------------------------------------------------------------------------ samples


def recognition_rate(
    pipeline: TextToImagePipeline, clip: ChineseCLIP, names: dict[str, str], config: SamplingConfig
) -> float:
    """Share of drawn pictures that the CLIP assigns to the right dish of the whole menu.
    names: {dish: name to draw}
    """
    pictures = clip.encode_image(pipeline.txt2img(list(names.values()), config))
    right = torch.tensor([list(LEARNED).index(d) for d in names], device=pictures.device)
    return top1_accuracy(pictures, name_embeddings(clip, LEARNED), right)


def print_recognition(pipeline: TextToImagePipeline, clip: ChineseCLIP, flags: Text2DishFlags) -> None:
    """Measure the recognition rate of learned and held-out names, and write recognised.json."""
    config = SamplingConfig(flags.guidance, sampler=flags.sampler)
    names = {"learned names": {d: d for d in LEARNED}, "held-out names": HELD_OUT}
    shares = {what: recognition_rate(pipeline, clip, some, config) for what, some in names.items()}
    write_json(flags.run_dir / "recognised.json", shares)
    for what, share in shares.items():
        print(f"{what:18} {share:.1%} of the pictures are taken for the right dish of {len(LEARNED)} by the CLIP")
