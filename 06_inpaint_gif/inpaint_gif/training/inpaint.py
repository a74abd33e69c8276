"""What train_inpaint.py does once its flags are settled: windows with holes become latents, and a U-Net learns to fill them."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from common import viz
from common.cli import pick_device, pick_precision
from common.data import load
from common.data.dataset import Images
from common.data.dishes.captions import describe
from common.data.dishes.dataset import dish
from common.data.drawn import CAPTION, generator
from common.data.registry import DRAWN
from common.diffusion.guidance import drop_captions
from common.diffusion.losses import diffusion_loss
from common.diffusion.sampler_spec import Sampler
from common.diffusion.schedules import DiscreteSchedule
from common.errors import UserError
from common.io.files import write_folder
from common.io.pixels import to_float
from common.models.find_model import find_root
from common.models.pipeline import TextToImagePipeline
from common.models.text_to_image_folder import save_pipeline
from common.models.unet import UNet
from common.training.latents import BATCH, check_fit, check_fit_before, sample
from common.training.logging import Due, logged
from common.training.loop import LossTerms, State, TrainConfig, train
from common.training.record import check_record, keep_settings, record_of, start_of
from inpaint_gif.inpainting.backends import NineChannels, shown_to_unet
from inpaint_gif.inpainting.compositing import overlay
from inpaint_gif.inpainting.pipeline import Artist, How, count, open_artist
from inpaint_gif.training.hole_masks import camera_holes, random_holes
from inpaint_gif.training.latent_dataset import LatentSet, encoded, half
from inpaint_gif.training.scenes import drawn_views, views_of

SCENES = 2000  # scenes, where --n is left open
SHOWN = 8     # test windows that are painted as training goes


class HolePainter(nn.Module):
    """(B, c, h, w) noisy latents, (B,) noise levels, (B, M, D) text, (B, 1 + c, h, w) mask and known latents -> (B, c, h, w)"""

    def __init__(self, unet: UNet):
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor, words: Tensor, shown: Tensor) -> Tensor:
        return self.unet(torch.cat([x, shown], dim=1), t, text=words)


@dataclass(frozen=True)
class Holed:
    """Latents, what is shown of them, and their captions, as the training loop asks for them."""

    latents: LatentSet
    shown: Tensor    # (N, H, 1 + c, h, w) float16: masks, and the latents of the pictures with their holes
    table: Tensor    # (T, M, D) float16: all captions there are, as the text encoder reads them
    rows: Tensor     # (N,) which of them belongs to each picture

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        return self.latents.batch(indices) | {"shown": self.shown[indices].float(), "words": self.table[self.rows[indices]].float()}


def fit_inpaint(args) -> None:
    """Train as `args` (train_inpaint.Args, settled) says."""
    device = pick_device(args.device)
    artist = begin(args, device)
    artist.schedule.noise_levels(Sampler.parse_plain(args.sampler).steps)  # a number of steps that cannot be is refused now
    check_fit_before(artist.vae, (args.data,), artist.size, "--model")
    views, captions = gather(args, artist.size, "train")
    record = record_of(views, captions)
    check_record(args, record)
    check_fit(artist.vae, Images(args.data, views), "--model")
    accelerator = Accelerator(mixed_precision=pick_precision(args.precision, device), cpu=device == "cpu")
    data = prepare(args, artist, views, captions)
    cfg = TrainConfig(out=args.out, steps=args.steps, minutes=args.minutes, batch_size=args.batch_size, lr=args.lr, save_every=args.save_every, seed=args.seed)
    states = train(HolePainter(artist.unet), data, make_loss(args, artist), cfg, accelerator, resume=args.resume is not None)
    if not accelerator.is_main_process:
        for _ in states:  # it helps to train; the main process alone writes and draws
            pass
        return
    keep_settings(args, record, lambda folder: save_inpaint(folder, artist))
    introduce(args, views, artist, device)

    due, test = Due(args.sample_every), test_holes(args, artist.size)
    with closing(logged(states, args.out, args.steps)) as states:
        for state in states:
            painted_by = replace(artist, unet=state.ema.unet)
            if state.saved:
                write_folder(args.out / "model", lambda folder, artist=painted_by: save_inpaint(folder, artist))
            if due(state):
                draw_holes(painted_by, args, test, args.out / "samples" / f"step-{state.step:06d}.png")

    if state.progress < 1:
        print(f"stopped after step {state.step}; continue with: python 06_inpaint_gif/train_inpaint.py --resume {args.out}")
    else:
        show(args, state, painted_by, test)


# -------------------------------------------------------------------------------------------------------- the network


def begin(args, device: str) -> Artist:
    """The model to begin with, its U-Net widened; a resumed run has a copy of it."""
    root = start_of(args, args.model)
    artist = open_artist(root, device)
    lacks = {"an autoencoder": artist.vae is None, "a text encoder": not (find_root(root) / "text_encoder").is_dir()}
    if any(lacks.values()):
        raise UserError(f"{args.model} is no Stable Diffusion folder: it lacks {' and '.join(what for what, found in lacks.items() if found)}; choose another --model")
    if not isinstance(artist.schedule, DiscreteSchedule):
        raise UserError(f"the schedule '{artist.schedule.name}' of {args.model} has no discrete timesteps, which a Stable Diffusion folder stores; choose another --model")
    return artist if artist.paints_holes else replace(artist, unet=widened(artist.unet).to(device))


def widened(unet: UNet) -> UNet:
    """The same network, shown a mask and c more channels, of which it takes no notice yet: the new weights are zero."""
    c = unet.cfg.in_channels
    wide = UNet(replace(unet.cfg, in_channels=2 * c + 1))
    state = unet.state_dict()
    old = state["conv_in.weight"]                                                          # (width, c, 3, 3)
    wide.load_state_dict(state | {"conv_in.weight": torch.cat([old, old.new_zeros(len(old), c + 1, 3, 3)], dim=1)})
    return wide


def make_loss(args, artist: Artist):
    empty = artist.reader([""])[0].cpu()                                                   # (M, D)

    def loss(net: nn.Module, batch: dict[str, Tensor], draw) -> LossTerms:
        z0, shown, words = sample(batch, draw), batch["shown"], batch["words"]             # (B, c, h, w), (B, H, 1 + c, h, w), (B, M, D)
        shown = shown[torch.arange(len(z0), device=z0.device), (draw.rand(len(z0)) * shown.shape[1]).long()]  # one of its holes
        u, eps = draw.stratified(len(z0)), draw.randn(z0.shape)
        words = drop_captions(words, empty.to(words), draw.rand(len(z0)), args.caption_dropout)
        return LossTerms(diffusion_loss(net, artist.schedule, artist.prediction, z0, u, eps, words=words, shown=shown), u)

    return loss


# ------------------------------------------------------------------------------------------------------- the material


def gather(args, size: int, split: str, n: int | None = None, windows: int | None = None) -> tuple[Tensor, list[str]]:
    """Windows onto pictures, (N, C, size, size) uint8, and a caption for each: of drawn dishes Chinese and English in turn."""
    windows = windows or args.windows
    if args.data == "dishes":
        n = n or args.n or SCENES
        words = [(dish(0, split, i)[0], generator(CAPTION, args.seed, split, i)) for i in range(n)]
        return drawn_views(split, n, size, windows, args.seed), [describe(a, ("zh", "en")[k % 2], rng) for a, rng in words for k in range(windows)]
    images = load(args.data, 2 * size, args.data_dir, split, n=(n or args.n) if args.data in DRAWN else None, channels=3)
    images = images.first(min(n or args.n or len(images), len(images)))
    return views_of(images, size, windows, args.seed), [text for text in images.need_captions() for _ in range(windows)]


@torch.no_grad()
def prepare(args, artist: Artist, views: Tensor, captions: Sequence[str]) -> Holed:
    """All that the training needs, computed once: else every epoch would encode every picture with its hole anew."""
    masks = random_holes(args.holes * len(views), *views.shape[2:], args.seed)
    masks = masks.view(len(views), args.holes, 1, *views.shape[2:])
    shown = []
    for some, holes in tqdm(zip(views.split(BATCH), masks.split(BATCH), strict=True), "encoding with holes", -(-len(views) // BATCH), leave=False):
        repeated = to_float(some).repeat_interleave(args.holes, 0)
        shown.append(half(shown_to_unet(artist, repeated, holes.flatten(0, 1).float())).unflatten(0, (len(some), args.holes)))
    return Holed(encoded(artist.vae, Images(args.data, views)), torch.cat(shown), *captions_table(artist, captions))


@torch.no_grad()
def captions_table(artist: Artist, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """All different captions as the text encoder reads them, (T, M, D) float16, and which of them belongs to each picture, (N,)."""
    number = {text: i for i, text in enumerate(dict.fromkeys(captions))}
    table = torch.cat([half(artist.reader(list(number)[i : i + BATCH])) for i in range(0, len(number), BATCH)])
    return table, torch.tensor([number[text] for text in captions])


# ------------------------------------------------------------------------------------------------------------ the folder


def save_inpaint(folder: Path, artist: Artist, dtype: torch.dtype = torch.float32) -> None:
    """Write a folder for StableDiffusionInpaintPipeline.from_pretrained(folder). Each file whole or not at all."""
    pipeline = TextToImagePipeline(artist.unet, artist.schedule, artist.prediction, artist.reader, artist.vae)
    save_pipeline(folder, pipeline, dtype, "StableDiffusionInpaintPipeline")


# -------------------------------------------------------------------------------------------------------------- pictures


@dataclass(frozen=True)
class Test:
    """Windows onto pictures of the test split, with holes as a camera leaves them, and captions."""

    images: Tensor  # (N, C, H, W)
    masks: Tensor   # (N, 1, H, W)
    captions: list[str]


def test_holes(args, size: int, n: int = SHOWN) -> Test:
    views, captions = gather(args, size, "test", n, 1)
    bank = camera_holes(*views.shape[2:])
    chosen = np.random.default_rng(args.seed).choice(len(bank), len(views))
    return Test(to_float(views), bank[chosen], captions)


def draw_holes(artist: Artist, args, test: Test, path: Path) -> Path:
    painted = NineChannels(artist, How(w=args.guidance, sampler=args.sampler)).paint(test.images, test.masks, test.captions, args.seed)
    return save_rows(test, painted, path)


def save_rows(test: Test, painted: Tensor, path: Path) -> Path:
    """A row each: the picture; with its hole; painted; painted, and every known pixel put back."""
    together = torch.stack([overlay(*parts) for parts in zip(test.images, painted, test.masks, strict=True)])
    rows = torch.cat([test.images, test.images * (1 - test.masks), painted, together])
    return viz.save_picture(viz.grid(rows, len(test.images), 520), path)


def introduce(args, views: Tensor, artist: Artist, device: str) -> None:
    c, side = artist.vae.cfg.latent_channels, views.shape[-1] // artist.factor
    print(f"{args.data}: {len(views):,} windows of {views.shape[-1]}x{views.shape[-1]} with {args.holes} holes each, as latents {c} x {side} x {side}; "
          f"U-Net with {count(artist.unet):,} weights, begun from {args.model}, on {device}")  # fmt: skip


def show(args, state: State, artist: Artist, test: Test) -> None:
    """The end of a run: pictures, and where everything is."""
    pictures = {"test holes": draw_holes(artist, args, test, args.out / "samples.png"), "loss curve": viz.plot_run(args.out, args.out / "loss.png"),
                "model": args.out / "model"}  # fmt: skip
    print(f"{state.step} steps in {state.seconds:.0f} s of training")
    for what, path in pictures.items():
        print(f"{what:18} {path}")
    print(f'{"a film":18} python 06_inpaint_gif/make_gif.py "番茄炒蛋" --engine inpaint --model {args.out}')
