"""What train_controlnet.py does once its flags are settled: a copy of the U-Net's first half learns what pictures with holes want."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn

from common import viz
from common.cli import pick_device, pick_precision
from common.data.dataset import Images
from common.diffusion.guidance import drop_captions
from common.diffusion.losses import diffusion_loss
from common.diffusion.sampler_spec import Sampler
from common.errors import UserError, explain
from common.io.files import write_folder
from common.io.pixels import to_float
from common.models.find_model import find_root
from common.training.latents import check_fit, check_fit_before, sample
from common.training.logging import Due, logged
from common.training.loop import LossTerms, State, TrainConfig, train
from common.training.record import check_record, fingerprint, keep_settings, record_of
from inpaint_gif.inpainting.backends import Controlled, open_controlled, shown_to_controlnet
from inpaint_gif.inpainting.pipeline import Artist, How, count, open_artist
from inpaint_gif.training.hole_masks import random_holes
from inpaint_gif.training.inpaint import Test, captions_table, gather, save_rows, test_holes
from inpaint_gif.training.latent_dataset import LatentSet, encoded

WIDTHS = {1: (16,), 2: (16, 32), 4: (16, 32, 64), 8: (16, 32, 96, 256)}  # of the network that shrinks the picture f times; the last is diffusers' own


class Answer(nn.Module):
    """The ControlNet, and the U-Net that listens to it and learns nothing. In the list it is not among the weights to train.

    (B, c, h, w) noisy latents, (B,) noise levels, (B, M, D) text, (B, 3, H, W) picture with hole -> (B, c, h, w)
    """

    def __init__(self, controlnet: ControlNetModel, unet: UNet2DConditionModel):
        super().__init__()
        self.controlnet, self.listens = controlnet, [unet]

    def forward(self, x: Tensor, t: Tensor, words: Tensor, control: Tensor) -> Tensor:
        down, middle = self.controlnet(x, t, words, controlnet_cond=control, return_dict=False)
        return self.listens[0](x, t, words, down_block_additional_residuals=down, mid_block_additional_residual=middle, return_dict=False)[0]


@dataclass(frozen=True)
class Pierced:
    """Latents, the pictures they come from, holes for them, and their captions, as the training loop asks for them."""

    latents: LatentSet
    views: Tensor    # (N, C, H, W) uint8
    masks: Tensor    # (N, K, 1, H, W) uint8
    table: Tensor    # (T, M, D) float16: all captions there are, as the text encoder reads them
    rows: Tensor     # (N,) which of them belongs to each picture

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        return self.latents.batch(indices) | {"image": to_float(self.views[indices]), "masks": self.masks[indices],
                                              "words": self.table[self.rows[indices]].float()}  # fmt: skip


def fit_controlnet(args) -> None:
    """Train as `args` (train_controlnet.Args, settled) says."""
    device = pick_device(args.device)
    artist, root = open_artist(args.model, device), find_root(args.model)
    check(args, artist, root)
    artist.schedule.noise_levels(Sampler.parse_plain(args.sampler).steps)  # a number of steps that cannot be is refused now
    check_fit_before(artist.vae, (args.data,), artist.size, "--model")
    views, captions = gather(args, artist.size, "train")
    record = record_of(views, captions) | {"model": fingerprint(artist.unet, artist.vae)}
    check_record(args, record)
    check_fit(artist.vae, Images(args.data, views), "--model")
    unet = UNet2DConditionModel.from_pretrained(root, subfolder="unet").requires_grad_(False).eval().to(device)
    net = Answer(new_controlnet(unet, artist.factor, args.seed), unet)
    accelerator = Accelerator(mixed_precision=pick_precision(args.precision, device), cpu=device == "cpu")
    cfg = TrainConfig(out=args.out, steps=args.steps, minutes=args.minutes, batch_size=args.batch_size, lr=args.lr, save_every=args.save_every, seed=args.seed)
    states = train(net, prepare(args, artist, views, captions), make_loss(args, artist), cfg, accelerator, resume=args.resume is not None)
    if not accelerator.is_main_process:
        for _ in states:  # it helps to train; the main process alone writes and draws
            pass
        return
    keep_settings(args, record)
    print(f"{args.data}: {len(views):,} windows of {views.shape[-1]}x{views.shape[-1]} with {args.holes} holes each; a ControlNet with {count(net):,} weights beside "
          f"a U-Net with {count(unet):,}, that of {args.model}, on {device}")  # fmt: skip

    due, test, own = Due(args.sample_every), test_holes(args, artist.size), args.out / "model"
    with closing(logged(states, args.out, args.steps)) as states:
        for state in states:
            if state.saved:
                save_controlnet(own, state.ema.controlnet)
            if due(state) and own.is_dir():
                draw_holes(args, state.ema.controlnet, test, device, args.out / "samples" / f"step-{state.step:06d}.png")

    if state.progress < 1:
        print(f"stopped after step {state.step}; continue with: python 06_inpaint_gif/train_controlnet.py --resume {args.out}")
    else:
        show(args, state, test, device)


def check(args, artist: Artist, root: Path) -> None:
    lacks = {"an autoencoder": artist.vae is None, "a text encoder": not (root / "text_encoder").is_dir(), "a U-Net that takes no mask": artist.paints_holes}
    if any(lacks.values()):
        raise UserError(f"{args.model} cannot have a ControlNet: it lacks {' and '.join(what for what, found in lacks.items() if found)}; choose another --model")
    if artist.channels != 3 or artist.factor not in WIDTHS:
        raise UserError(f"a ControlNet needs images of three channels, and an autoencoder that reduces them by a factor of {', '.join(map(str, WIDTHS))}; {args.model} has "
                        f"{artist.channels} channels and a factor of {artist.factor}; choose another --model")  # fmt: skip


def new_controlnet(unet: UNet2DConditionModel, f: int, seed: int) -> ControlNetModel:
    """A copy of the U-Net's first half and middle, with zeros where it speaks, and a network that shrinks pictures f times."""
    torch.manual_seed(seed)
    try:
        return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=WIDTHS[f]).requires_grad_(True)
    except Exception as problem:  # diffusers knows ControlNets for the common kinds of U-Nets only
        raise UserError(f"diffusers cannot make a ControlNet for this U-Net ({explain(problem)})") from problem


def prepare(args, artist: Artist, views: Tensor, captions: Sequence[str]) -> Pierced:
    masks = random_holes(args.holes * len(views), *views.shape[2:], args.seed).unflatten(0, (len(views), args.holes))
    return Pierced(encoded(artist.vae, Images(args.data, views)), views, masks, *captions_table(artist, captions))


def make_loss(args, artist: Artist):
    empty = artist.reader([""])[0].cpu()                                                   # (M, D)

    def loss(net: nn.Module, batch: dict[str, Tensor], draw) -> LossTerms:
        z0, masks, words = sample(batch, draw), batch["masks"], batch["words"]             # (B, c, h, w), (B, K, 1, H, W), (B, M, D)
        mask = masks[torch.arange(len(z0), device=z0.device), (draw.rand(len(z0)) * masks.shape[1]).long()]   # one of its holes
        u, eps = draw.stratified(len(z0)), draw.randn(z0.shape)
        words = drop_captions(words, empty.to(words), draw.rand(len(z0)), args.caption_dropout)
        control = shown_to_controlnet(batch["image"], mask.float())
        return LossTerms(diffusion_loss(net, artist.schedule, artist.prediction, z0, u, eps, words=words, control=control), u)

    return loss


def save_controlnet(folder: Path, net: ControlNetModel) -> None:
    """Write a folder for ControlNetModel.from_pretrained, whole or not at all."""
    write_folder(folder, net.save_pretrained)


# -------------------------------------------------------------------------------------------------------------- pictures


def draw_holes(args, net: ControlNetModel | None, test: Test, device: str, path: Path) -> Path:
    engine: Controlled = open_controlled(str(args.model), str(args.out), How(w=args.guidance, sampler=args.sampler), device)
    if net is not None:
        engine.pipe.register_modules(controlnet=net.eval())
    painted = torch.stack([engine(*parts, args.seed) for parts in zip(test.images, test.masks, test.captions, strict=True)])
    return save_rows(test, painted, path)


def show(args, state: State, test: Test, device: str) -> None:
    """The end of a run: pictures, and where everything is."""
    pictures = {"test holes": draw_holes(args, None, test, device, args.out / "samples.png"), "loss curve": viz.plot_run(args.out, args.out / "loss.png"),
                "ControlNet": args.out / "model"}  # fmt: skip
    print(f"{state.step} steps in {state.seconds:.0f} s of training")
    for what, path in pictures.items():
        print(f"{what:18} {path}")
    print(f'{"a film":18} python 06_inpaint_gif/make_gif.py "番茄炒蛋" --engine controlnet --controlnet {args.out}')
