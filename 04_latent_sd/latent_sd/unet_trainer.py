"""What train.py does once its flags are settled: images become latents, a U-Net and its reader learn them, and pictures are shown."""

from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from common import viz
from common.cli import pick_device, pick_precision
from common.data import Images, load
from common.diffusion.diffusers_scheduler import check_pair
from common.diffusion.guidance import drop_captions
from common.diffusion.losses import diffusion_loss
from common.diffusion.sampler_spec import Sampler
from common.diffusion.schedules import Schedule, make_schedule
from common.errors import UserError
from common.io.files import write_folder
from common.models.diffusers_vae import load_vae, save_vae
from common.models.model_folder import start_from
from common.models.text.encoders import Cached, CLIPTextEncoder, SmallText, TextEncoder, small_text
from common.models.unet import UNet, zero_init
from common.models.unet_config import text_unet
from common.models.vae import AutoencoderKL
from common.training.checkpoint import checkpoints, load_checkpoint
from common.training.latents import check_fit_before
from common.training.logging import Due, logged
from common.training.loop import LossTerms, State, TrainConfig, train
from common.training.record import check_record, keep_settings, record_of, start_of
from latent_sd.concat_dataset import joined
from latent_sd.latent_dataset import LatentData, OnTheFly, cached_latents, check_fit, fingerprint, sample, training_order
from latent_sd.pipeline import Pipeline, Wish, check_schedule, open_pipeline, save_pipeline

SLOW = "reader"  # at the U-Net's learning rate all words would soon mean much the same: see chapter 2's README


class Painter(nn.Module):
    """All that is trained: the U-Net, and the transformer that reads for it, if it has one of its own.

    (B, c, h, w) noisy latents, (B,) noise levels, (B, M) token ids or (B, M, D) embeddings -> (B, c, h, w)
    """

    def __init__(self, unet: UNet, reader: SmallText | None):
        super().__init__()
        self.unet, self.reader = unet, reader

    def forward(self, x: Tensor, t: Tensor, words: Tensor) -> Tensor:
        return self.unet(x, t, text=self.reader(words) if self.reader else words)


@dataclass(frozen=True)
class Captioned:
    """Latents with the words that belong to them, as the training loop asks for them."""

    latents: LatentData | OnTheFly
    captions: tuple[str, ...]
    words: Tensor | Cached  # token ids (N, M), or a frozen encoder that knows all captions

    def __len__(self) -> int:
        return len(self.latents)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """{"latent": (B, c, h, w), "std": (B, c, h, w), "words": (B, M) ids or (B, M, D) embeddings}"""
        words = self.words[indices] if isinstance(self.words, Tensor) else self.words([self.captions[i] for i in indices])
        return self.latents.batch(indices) | {"words": words}


def fit_unet(args) -> None:
    """Train as `args` (train.Args, settled) says."""
    check_pair(args.schedule, args.prediction)
    schedule, sampler = make_schedule(args.schedule), Sampler.parse_plain(args.sampler)
    check_schedule(schedule)
    schedule.noise_levels(sampler.steps)  # a number of steps that cannot be is refused now, not after the training
    device = pick_device(args.device)
    vae = load_vae(start_of(args, args.vae), device)
    begun, clip = begun_with(args), open_clip(args, device)  # models that cannot be opened are refused before any data are drawn
    check_fit_before(vae, args.data, args.size or vae.cfg.size)
    images = load_captioned(args, args.size or vae.cfg.size, vae.cfg.image_channels)
    record = record_of(images.pixels, images.captions)
    check_record(args, record)
    check_fit(vae, images)
    torch.manual_seed(args.seed)
    encoder = make_encoder(args, images.captions, begun, clip)
    net = make_net(args, images, vae, encoder, begun)
    accelerator = Accelerator(mixed_precision=pick_precision(args.precision, device), cpu=device == "cpu")

    loss = LatentLoss(args, schedule, encoder, vae, images)
    if args.resume and checkpoints(args.out):
        loss.load_state_dict(load_checkpoint(checkpoints(args.out)[-1])["loss"])  # another autoencoder is refused before it encodes anything
    with accelerator.main_process_first():  # the others find the file
        latents = make_latents(args, vae, images, accelerator)
    data = Captioned(latents, images.captions, words_of(images, encoder))
    states = train(net, data, loss, train_config(args, encoder), accelerator, resume=args.resume is not None)
    if not accelerator.is_main_process:
        for _ in states:  # it helps to train; the main process alone writes and draws
            pass
        return
    keep_settings(args, record, lambda folder: save_start(folder, vae, begun))
    introduce(args, images, net, vae, encoder, device)

    due = Due(args.sample_every)
    workers = closing(latents) if isinstance(latents, OnTheFly) else nullcontext()
    with closing(logged(states, args.out, args.steps)) as states, workers:
        for state in states:
            pipeline = Pipeline(vae, state.ema.unet, schedule, args.prediction, state.ema.reader or encoder)
            if state.saved:
                write_folder(args.out / "model", lambda folder, pipeline=pipeline: save_pipeline(folder, pipeline))
            if due(state):
                draw_validation(pipeline, args, args.out / "samples" / f"step-{state.step:06d}.png")

    if state.progress < 1:
        print(f"stopped after step {state.step}; continue with: python 04_latent_sd/train.py --resume {args.out}")
    else:
        show(args, state, pipeline)


# ------------------------------------------------------------------------------------------------ what is trained on what


def load_captioned(args, size: int, channels: int | None = None) -> Images:
    """All sets as one, a caption for every image; a set that lacks one is refused, and says which."""
    sets = [load(name, size, args.data_dir, language=args.language, n=args.n, channels=channels) for name in args.data]
    return joined([replace(images, captions=images.need_captions(args.language)) for images in sets])


def make_latents(args, vae: AutoencoderKL, images: Images, accelerator: Accelerator) -> LatentData | OnTheFly:
    if args.latents == "cached":
        return cached_latents(vae, images, args.cache)
    done = checkpoints(args.out)[-1].stem.removeprefix("step-") if args.resume and checkpoints(args.out) else 0
    order = training_order(len(images), args.batch_size, args.seed, int(done) * args.gradient_accumulation, accelerator.process_index, accelerator.num_processes)
    return OnTheFly(vae, images, args.workers, order, str(accelerator.device))


def begun_with(args) -> Pipeline | None:
    """The model that the run starts from; a resumed run has a copy of it."""
    return open_pipeline(start_of(args, args.start)) if args.start else None


def save_start(folder: Path, vae: AutoencoderKL, begun: Pipeline | None) -> None:
    """What the run begins with: its autoencoder, and the U-Net and text encoder of --start."""
    if begun:
        save_pipeline(folder, replace(begun, vae=vae))
    else:
        save_vae(folder / "vae", vae)


def open_clip(args, device: str) -> CLIPTextEncoder | None:
    """The frozen text encoder of --text."""
    return None if args.text == "small" else CLIPTextEncoder(args.text).to(device)


def make_encoder(args, captions: Sequence[str], begun: Pipeline | None = None, clip: CLIPTextEncoder | None = None) -> SmallText | Cached:
    if clip:
        return Cached(clip, captions, args.cache)
    if begun and isinstance(begun.encoder, SmallText):
        return begun.encoder  # with the tokens that it has learned to read
    return small_text(captions, dim=args.text_dim, heads=max(1, args.text_dim // 32))


def make_net(args, images: Images, vae: AutoencoderKL, encoder: TextEncoder, begun: Pipeline | None = None) -> Painter:
    cfg = text_unet(images.size // vae.cfg.factor, vae.cfg.latent_channels, args.channels, encoder.dim, args.layers)
    unet = zero_init(UNet(cfg))
    if begun:
        start_from(unet, begun.unet, args.start)
    return Painter(unet, encoder if isinstance(encoder, SmallText) else None)


def words_of(images: Images, encoder: TextEncoder) -> Tensor | Cached:
    return encoder.tokenizer(images.captions) if isinstance(encoder, SmallText) else encoder


class LatentLoss:
    """Chapter 2's loss, on latents. Checkpoints remember which (training.Stateful): a run does not go on with those of another
    autoencoder, or of other images, for to the network they would be another language."""

    def __init__(self, args, schedule: Schedule, encoder: TextEncoder, vae: AutoencoderKL, images: Images):
        self.args, self.schedule = args, schedule
        self.empty = encoder.tokenizer([""])[0] if isinstance(encoder, SmallText) else encoder([""])[0]  # (M,) or (M, D)
        self.latents = {"made_by": fingerprint(vae, images), "scaling_factor": vae.cfg.scaling_factor}

    def __call__(self, net: nn.Module, batch: dict[str, Tensor], draw) -> LossTerms:
        z0, words = sample(batch, draw), batch["words"]        # (B, c, h, w), (B, M) or (B, M, D)
        u, eps = draw.stratified(len(z0)), draw.randn(z0.shape)
        words = drop_captions(words, self.empty.to(words), draw.rand(len(z0)), self.args.caption_dropout)
        return LossTerms(diffusion_loss(net, self.schedule, self.args.prediction, z0, u, eps, words=words), u)

    def state_dict(self) -> dict[str, Any]:
        return self.latents

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state != self.latents:
            raise UserError(f"{self.args.out} was trained on the latents of another autoencoder, or of other images, than it would go on with; "
                            f"put back {self.args.out / 'start' / 'vae'} and the images as they were, or begin a new run")  # fmt: skip


def train_config(args, encoder: TextEncoder) -> TrainConfig:
    return TrainConfig(
        out=args.out, steps=args.steps, minutes=args.minutes, batch_size=args.batch_size, lr=args.lr, gradient_accumulation=args.gradient_accumulation,
        save_every=args.save_every, seed=args.seed, slow=SLOW if isinstance(encoder, SmallText) else None,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- pictures


def draw_validation(pipeline: Pipeline, args, path: Path) -> Path:
    """The fixed prompts: above as they are drawn plainly (w = 1), below with guidance, from the same noise."""
    rows = [pipeline.txt2img(args.prompts, Wish(w=w, sampler=args.sampler, seed=args.seed)) for w in (1.0, args.guidance)]
    return viz.save_picture(viz.grid(torch.cat(rows), len(args.prompts), 260), path)


def introduce(args, images: Images, net: Painter, vae: AutoencoderKL, encoder: TextEncoder, device: str) -> None:
    c, side = vae.cfg.latent_channels, images.size // vae.cfg.factor
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    read_by = f"read by a transformer with {count(net.reader):,}" if net.reader else f"read by the frozen {args.text}"
    print(f"{' + '.join(args.data)}: {len(images):,} images of {images.size}x{images.size} as latents {c} x {side} x {side}; "
          f"U-Net with {count(net.unet):,} weights, captions {read_by}, on {device}")  # fmt: skip
    for i, prompt in enumerate(args.prompts, 1):
        print(f"  picture {i}: {prompt or '(no words)'}")


def show(args, state: State, pipeline: Pipeline) -> None:
    """The pictures at the end of a run, and where they are."""
    pictures = {
        "plain, guided": draw_validation(pipeline, args, args.out / "samples.png"),
        "loss curve": viz.plot_run(args.out, args.out / "loss.png"),
        "model": args.out / "model",
    }
    print(f"{state.step} steps in {state.seconds:.0f} s of training")
    for what, path in pictures.items():
        print(f"{what:18} {path}")
    print(f'{"more pictures":18} python 04_latent_sd/sample.py "{args.prompts[0]}" --model {args.out}')
