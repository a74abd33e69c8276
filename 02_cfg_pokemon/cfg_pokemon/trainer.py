"""What train.py does once its flags are settled: train a network and its reader of words, save, and show pictures."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from cfg_pokemon.augmentation import augment
from cfg_pokemon.guidance import drop_captions
from cfg_pokemon.pipeline import Painter, Wish, open_painter, save_painter
from common import viz
from common.cli import pick_device, pick_precision
from common.data import Images, load
from common.diffusion.diffusers_scheduler import check_pair
from common.diffusion.losses import diffusion_loss
from common.diffusion.sampler_spec import Sampler
from common.diffusion.schedules import Schedule, make_schedule
from common.io.files import write_folder
from common.models.model_folder import start_from
from common.models.text.encoders import Cached, CLIPTextEncoder, SmallText, TextEncoder, small_text
from common.models.unet import UNet, text_unet, zero_init
from common.training.logging import Due, logged
from common.training.loop import LossTerms, TrainConfig, train
from common.training.record import check_record, keep_settings, record_of, start_of

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
    images = load(args.data, args.size, args.data_dir, language=args.language, n=args.n, channels=args.image_channels)
    captions = images.need_captions(args.language)
    record = record_of(images.pixels, captions)
    check_record(args, record)
    torch.manual_seed(args.seed)
    encoder = make_encoder(args, captions, begun, clip)
    net = make_net(args, images, encoder, begun)
    accelerator = Accelerator(mixed_precision=pick_precision(args.precision, device), cpu=device == "cpu")

    data, loss = make_data(images, encoder), make_loss(args, schedule, encoder)
    states = train(net, data, loss, train_config(args, encoder), accelerator, resume=args.resume is not None)
    if not accelerator.is_main_process:
        for _ in states:  # it helps to train; the main process alone writes and draws
            pass
        return
    keep_settings(args, record, (lambda folder: save_painter(folder, begun)) if begun else None)
    introduce(args, images, net, encoder, device)

    due = Due(args.sample_every)
    with closing(logged(states, args.out, args.steps)) as states:
        for state in states:
            painter = painter_of(state.ema, schedule, args.prediction, encoder)
            if state.saved:
                write_folder(args.out / "model", lambda folder, painter=painter: save_painter(folder, painter))
            if due(state):
                draw_validation(painter, args, args.out / "samples" / f"step-{state.step:06d}.png")

    if state.progress < 1:
        print(f"stopped after step {state.step}; continue with: python 02_cfg_pokemon/train.py --resume {args.out}")
    else:
        show(args, state, painter)


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


def train_config(args, encoder: TextEncoder) -> TrainConfig:
    return TrainConfig(
        out=args.out, steps=args.steps, minutes=args.minutes, batch_size=args.batch_size, lr=args.lr, gradient_accumulation=args.gradient_accumulation,
        save_every=args.save_every, seed=args.seed, slow=SLOW if isinstance(encoder, SmallText) else None,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ pictures


def painter_of(net: nn.Module, schedule: Schedule, prediction: str, encoder: TextEncoder) -> Painter:
    """The averaged U-Net with the averaged reader, or with the frozen one."""
    return Painter(net.unet, schedule, prediction, getattr(net, "encoder", encoder))


def draw_validation(painter: Painter, args, path: Path) -> Path:
    """The fixed prompts: above as they are drawn plainly (w = 1), below with guidance, from the same noise."""
    rows = [painter.draw(args.prompts, Wish(w=w, sampler=args.sampler, seed=args.seed)) for w in (1.0, args.guidance)]
    return viz.save_picture(viz.grid(torch.cat(rows), len(args.prompts), 200), path)


def introduce(args, images: Images, net: nn.Module, encoder: TextEncoder, device: str) -> None:
    reader = sum(p.numel() for p in encoder.parameters()) if isinstance(encoder, SmallText) else 0
    unet = sum(p.numel() for p in net.unet.parameters())
    read_by = f"read by a transformer with {reader:,}" if reader else f"read by the frozen {args.text}"
    print(f"{args.data}: {len(images):,} images of {images.size}x{images.size}; U-Net with {unet:,} weights, captions {read_by}, on {device}")
    for i, prompt in enumerate(args.prompts, 1):
        print(f"  picture {i}: {prompt or '(no words)'}")


def show(args, state, painter: Painter) -> None:
    """The pictures at the end of a run, and where they are."""
    pictures = {
        "plain, guided": draw_validation(painter, args, args.out / "samples.png"),
        "loss curve": viz.plot_run(args.out, args.out / "loss.png"),
        "model": args.out / "model",
    }
    print(f"{state.step} steps in {state.seconds:.0f} s of training")
    for what, path in pictures.items():
        print(f"{what:18} {path}")
    print(f'{"more pictures":18} python 02_cfg_pokemon/sample.py "{args.prompts[0]}" --model {args.out}')
