"""What train.py does once its flags are settled: train a network and its reader of words, save, and show pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cfg_pokemon.augmentation import augment
from cfg_pokemon.guidance import drop_captions
from cfg_pokemon.pipeline import Painter, Wish, open_painter, save_painter
from common import viz
from common.cli import pick_device
from common.data import Images, load
from common.diffusion.diffusers_scheduler import check_pair
from common.diffusion.losses import diffusion_loss
from common.diffusion.sampler_spec import Sampler
from common.diffusion.schedules import Schedule, make_schedule
from common.models.model_folder import start_from
from common.models.text.encoders import Cached, CLIPTextEncoder, SmallText, TextEncoder, small_text
from common.models.unet import UNet, zero_init
from common.models.unet_config import text_unet
from common.training.loop import LossTerms, State
from common.training.record import check_record, record_of, start_of
from common.training.run import image_channels, loss_curve_and_model, make_accelerator, run_training

SLOW = "encoder"  # at the U-Net's learning rate all words would soon mean much the same: see the README


class ReaderAndPainter(nn.Module):
    """A U-Net and the transformer that reads its captions, as one network with one set of weights to train.

    (B, C, H, W) noisy images, (B,) noise levels, (B, M) token ids -> (B, C, H, W)
    """

    def __init__(self, unet: UNet, encoder: SmallText):
        super().__init__()
        self.unet, self.encoder = unet, encoder

    def forward(self, x: Tensor, t: Tensor, words: Tensor) -> Tensor:
        return self.unet(x, t, text=self.encoder(words))


class PainterAlone(nn.Module):
    """A U-Net whose captions come as embeddings, read by somebody else: (B, M, D)."""

    def __init__(self, unet: UNet):
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor, words: Tensor) -> Tensor:
        return self.unet(x, t, text=words)


@dataclass(frozen=True)
class Captioned:
    """Images with the words that belong to them, as the training loop asks for them."""

    images: Images
    words: Tensor | Cached  # token ids (N, M), or a frozen encoder that knows all captions

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """{"image": (B, C, H, W) in [-1, 1], "words": (B, M) ids or (B, M, D) embeddings}"""
        words = self.words[indices] if isinstance(self.words, Tensor) else self.words([self.images.captions[i] for i in indices])
        return {"image": self.images.batch(indices)["image"], "words": words}


def teach(args) -> None:
    """Train as `args` (train.Args, settled) says."""
    check_pair(args.schedule, args.prediction)
    schedule, sampler = make_schedule(args.schedule), Sampler.parse_plain(args.sampler)
    schedule.noise_levels(sampler.steps)  # a number of steps that cannot be is refused now, not after the training
    device = pick_device(args.device)
    begun, clip = begun_with(args), open_clip(args, device)  # models that cannot be opened are refused before any data are drawn
    images = load(args.data, args.size, args.data_dir, language=args.language, n=args.n, channels=image_channels(args.image_channels, begun.net.cfg.in_channels if begun else None))
    captions = images.need_captions(args.language)
    record = record_of(images.pixels, captions)
    check_record(args, record)
    torch.manual_seed(args.seed)
    encoder = make_encoder(args, captions, begun, clip)
    net = make_net(args, images, encoder, begun)
    accelerator = make_accelerator(args.precision, device)

    def draw(state: State, path: Path) -> Path:
        return draw_validation(painter_of(state.ema, schedule, args.prediction, encoder), args, path)

    def finish(state: State) -> dict[str, object]:
        return {"plain, guided": draw(state, args.out / "samples.png"), **loss_curve_and_model(args.out),
                "more pictures": f'python 02_cfg_pokemon/sample.py "{args.prompts[0]}" --model {args.out}'}  # fmt: skip

    run_training(
        "02_cfg_pokemon/train.py", args, net, make_data(images, encoder), make_loss(args, schedule, encoder), accelerator, record,
        introduction=introduction(args, images, net, encoder, device),
        save=lambda state, folder: save_painter(folder, painter_of(state.ema, schedule, args.prediction, encoder)),
        draw=draw,
        finish=finish,
        save_start=(lambda folder: save_painter(folder, begun)) if begun else None,
        slow=SLOW if isinstance(encoder, SmallText) else None,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ what is trained on what


def begun_with(args) -> Painter | None:
    """The model that the run starts from; a resumed run has a copy of it."""
    return open_painter(start_of(args, args.start)) if args.start else None


def open_clip(args, device: str) -> CLIPTextEncoder | None:
    """The frozen text encoder of --text."""
    return None if args.text == "small" else CLIPTextEncoder(args.text).to(device)


def make_encoder(args, captions: Sequence[str], begun: Painter | None = None, clip: CLIPTextEncoder | None = None) -> SmallText | Cached:
    if clip:
        return Cached(clip, captions, Path("runs/02_cfg_pokemon/text_cache"))
    if begun and isinstance(begun.encoder, SmallText):
        return begun.encoder  # with the tokens that it has learned to read
    return small_text(captions, dim=args.text_dim, heads=max(1, args.text_dim // 32))


def make_net(args, images: Images, encoder: TextEncoder, begun: Painter | None = None) -> nn.Module:
    unet = zero_init(UNet(text_unet(images.size, images.channels, args.channels, encoder.dim, args.layers)))
    if begun:
        start_from(unet, begun.net, args.start)
    return ReaderAndPainter(unet, encoder) if isinstance(encoder, SmallText) else PainterAlone(unet)


def make_data(images: Images, encoder: TextEncoder) -> Captioned:
    return Captioned(images, encoder.tokenizer(images.captions) if isinstance(encoder, SmallText) else encoder)


def make_loss(args, schedule: Schedule, encoder: TextEncoder):
    """Chapter 1's loss, and one line more: some captions are dropped."""
    empty = encoder.tokenizer([""])[0] if isinstance(encoder, SmallText) else encoder([""])[0]  # (M,) or (M, D)

    def loss(net, batch: dict[str, Tensor], draw) -> LossTerms:
        x0, words = batch["image"], batch["words"]
        u, eps = draw.stratified(len(x0)), draw.randn(x0.shape)
        if args.augment != "none":
            x0 = augment(args.augment, x0, draw.rand(len(x0)))
        words = drop_captions(words, empty.to(words), draw.rand(len(x0)), args.caption_dropout)
        return LossTerms(diffusion_loss(net, schedule, args.prediction, x0, u, eps, words=words), u)

    return loss


# ------------------------------------------------------------------------------------------------------------ pictures


def painter_of(net: nn.Module, schedule: Schedule, prediction: str, encoder: TextEncoder) -> Painter:
    """The averaged U-Net with the averaged reader, or with the frozen one."""
    return Painter(net.unet, schedule, prediction, getattr(net, "encoder", encoder))


def draw_validation(painter: Painter, args, path: Path) -> Path:
    """The fixed prompts: above as they are drawn plainly (w = 1), below with guidance, from the same noise."""
    rows = [painter.draw(args.prompts, Wish(w=w, sampler=args.sampler, seed=args.seed)) for w in (1.0, args.guidance)]
    return viz.save_picture(viz.grid(torch.cat(rows), len(args.prompts), 200), path)


def introduction(args, images: Images, net: nn.Module, encoder: TextEncoder, device: str) -> str:
    """What is trained on what, and the prompts of the sample pictures."""
    reader = sum(p.numel() for p in encoder.parameters()) if isinstance(encoder, SmallText) else 0
    unet = sum(p.numel() for p in net.unet.parameters())
    read_by = f"read by a transformer with {reader:,}" if reader else f"read by the frozen {args.text}"
    first = f"{args.data}: {len(images):,} images of {images.size}x{images.size}; U-Net with {unet:,} weights, captions {read_by}, on {device}"
    return "\n".join([first, *(f"  picture {i}: {prompt or '(no words)'}" for i, prompt in enumerate(args.prompts, 1))])
