"""What train_vae.py does once its flags are settled: train the autoencoder, measure it, save it, and show pictures."""

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from matplotlib.figure import Figure
from torch import Tensor, nn

from common import viz
from common.cli import pick_device
from common.data import Images
from common.errors import UserError
from common.io.files import write_folder
from common.io.pixels import to_float
from common.io.state_dict import count_parameters
from common.io.tables import add_row, read_csv
from common.models.model_folder import load_vae, save_vae
from common.models.vae import AutoencoderKL, measure_scaling_factor, small_vae
from common.random import EVALUATION, generator
from common.training.latents import BATCH, encode
from common.training.loop import LossTerms, State
from common.training.record import check_record, record_of, start_of
from common.training.run import image_channels, make_accelerator, run_training
from common.training.vae_loss import (
    PatchDiscriminator,
    Perceptual,
    adaptive_weight,
    adversarial_loss,
    discriminator_loss,
    kl_per_value,
    random_stages,
    vae_loss,
)
from latent_sd.concat_dataset import load_all, some_of
from latent_sd.flags import AutoencoderFlags

CRITIC_LR = 2e-4  # of the discriminator, which has an optimizer of its own
SOME = 256  # training images over which a checkpoint's scaling factor is measured; the last one sees them all
COLUMNS = ["step", "seconds", "psnr", "kl", "discriminator_margin", "latent_std"]  # of quality.csv


def train_autoencoder(flags: AutoencoderFlags) -> None:
    """Train with settled flags."""
    device = pick_device(flags.device)
    start = load_vae(start_of(flags, flags.start)) if flags.start else None  # refused before any data are drawn
    channels = image_channels(flags.image_channels, start.cfg.image_channels if start else None)
    images = load_all(flags.data, flags.size, flags.data_dir, n=flags.n, channels=channels)
    record = record_of(images.pixels)
    check_record(flags, record)
    torch.manual_seed(flags.seed)
    vae = AutoencoderKL(small_vae(images.size, images.channels, flags.channels, flags.latent_channels, flags.layers))
    if start:
        start_from(vae, start, flags.start)
    if flags.decoder_only:
        keep_latents(vae, start.cfg.scaling_factor)
    accelerator = make_accelerator(flags.precision, device)
    loss = VAELoss(flags, images, accelerator)
    held_out = some_of(flags.data, flags.size, flags.data_dir, "test", flags.held_out, images.channels)

    def scaled_by(state: State, some: Images) -> AutoencoderKL:
        """The averaged autoencoder, with the scaling factor of these images unless only the decoder was trained."""
        return state.ema if flags.decoder_only else with_scale(state.ema, some)

    def on_step(state: State) -> None:
        loss.progress = state.progress

    def draw(state: State, path: Path) -> None:
        found = validate(state.ema, held_out, loss.critic)
        row = {"step": state.step, "seconds": f"{state.seconds:.1f}"} | {
            name: f"{value:.6g}" for name, value in found.items()
        }
        add_row(flags.run_dir / "quality.csv", row, COLUMNS)
        draw_sheet(state.ema, held_out, path)
        draw_traversal(state.ema, held_out, path.with_name(path.name.replace("step-", "traversal-")))

    def finish(state: State) -> dict[str, object]:
        vae = scaled_by(state, images)
        write_folder(flags.run_dir / "model", lambda folder: save_vae(folder / "vae", vae))
        return report(vae, held_out, flags.run_dir)

    run_training(
        "04_latent_sd/train_vae.py",
        flags,
        vae,
        images,
        loss,
        accelerator,
        record,
        introduction=introduction(flags, images, vae, loss, device),
        save=lambda state, folder: save_vae(folder / "vae", scaled_by(state, evenly(images, SOME))),
        draw=draw,
        finish=finish,
        save_start=(lambda folder: save_vae(folder / "vae", start)) if start else None,
        on_step=on_step,
        draw_last=True,
    )


def start_from(vae: AutoencoderKL, other: AutoencoderKL, folder: Path) -> None:
    """Load the weights of an autoencoder of the same architecture; the size of its images may differ."""
    mine, theirs = (asdict(replace(cfg, size=0, scaling_factor=1.0)) for cfg in (vae.cfg, other.cfg))
    if unlike := [f"{name} = {theirs[name]} against {mine[name]}" for name in mine if mine[name] != theirs[name]]:
        raise UserError(
            f"the autoencoder in {folder} has another architecture ({'; '.join(unlike)}); leave out --start, or give its settings"
        )
    vae.load_state_dict(other.state_dict())


def keep_latents(vae: AutoencoderKL, scaling_factor: float) -> None:
    """Train the decoder alone: the encoder is frozen and the scaling factor is that of --start,
    so the latents do not change.
    """
    for part in (vae.encoder, vae.quant_conv):
        part.requires_grad_(False)
    vae.cfg = replace(vae.cfg, scaling_factor=scaling_factor)


# ------------------------------------------------------------------------------------------------------------ the loss


class Critic:
    """A discriminator with an optimizer of its own, because common/training/loop.py has one network and one optimizer.

    It takes its step inside the loss, on the images of the same batch. Its state is part of every checkpoint
    (Stateful), so a resumed run is bit-equal with it, too.
    """

    def __init__(self, images: Images, device: torch.device):
        self.net = PatchDiscriminator(images.channels).to(device)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), CRITIC_LR, betas=(0.5, 0.9))
        if images.size < self.net.smallest:
            raise UserError(
                f"--adversarial needs images of at least {self.net.smallest} pixels a side, not {images.size}; leave it out"
            )

    def learn(self, x: Tensor, y: Tensor) -> None:
        """One optimizer step of the discriminator on these images x and reconstructions y."""
        discriminator_loss(self.net, x, y).mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class VAELoss:
    """The terms of common/training/vae_loss.py: pixels, KL, and what was asked for of perceptual and adversarial."""

    def __init__(self, flags: AutoencoderFlags, images: Images, accelerator: Accelerator):
        if flags.adversarial and accelerator.num_processes > 1:
            raise UserError(
                "--adversarial trains in one process only, because its discriminator is not synchronised; leave it out, or start without torchrun"
            )
        self.flags, self.progress = flags, 0.0  # the share of the budget used so far
        self.perceptual = (
            Perceptual(random_stages(images.channels)).to(accelerator.device) if flags.perceptual else None
        )
        self.critic = Critic(images, accelerator.device) if flags.adversarial else None

    def __call__(self, net: nn.Module, batch: dict[str, Tensor], draw) -> LossTerms:
        x, flags = batch["image"], self.flags  # (B, C, H, W)
        vae = getattr(net, "module", net)  # without what accelerate wraps around it
        f = vae.cfg.factor
        if flags.flip:
            x = torch.where(draw.rand(len(x)).view(-1, 1, 1, 1) < 0.5, x.flip(-1), x)
        y, z = net(x, draw.randn((len(x), flags.latent_channels, x.shape[2] // f, x.shape[3] // f)))
        each = vae_loss(x, y, z, flags.error, flags.kl, self.perceptual, flags.perceptual).total  # (B,)
        if self.critic and self.progress >= flags.adversarial_after:
            self.critic.learn(x, y)
            looks = adversarial_loss(self.critic.net, y)  # (B,)
            each = (
                each
                + flags.adversarial * adaptive_weight(each.mean(), looks.mean(), vae.decoder.conv_out.weight) * looks
            )
        return LossTerms(each, torch.zeros(len(x)))  # an autoencoder knows no noise levels: all count as the first

    def state_dict(self) -> dict[str, Any]:
        return (
            {"net": self.critic.net.state_dict(), "optimizer": self.critic.optimizer.state_dict()}
            if self.critic
            else {}
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.critic:
            self.critic.net.load_state_dict(state["net"])
            self.critic.optimizer.load_state_dict(state["optimizer"])


# -------------------------------------------------------------------------------------------------------- measurements


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in decibels: 10 log10(peak^2 / mean squared error),
    peak 2 for images in [-1, 1]. -> (B,)
    """
    mse = (x - y.clamp(-1, 1)).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / mse.clamp(min=1e-10))


def validate(vae: AutoencoderKL, images: Images, critic: Critic | None = None) -> dict[str, float]:
    """The means over images that training does not see, decoded from the modes of their posteriors:

    psnr                  decibels
    kl                    nats a pixel value, as in the loss
    discriminator_margin  mean D(image) - mean D(reconstruction); NaN without a discriminator
    latent_std            standard deviation of the latents before scaling; its inverse would be the scaling factor
    """
    found = measure_each(vae, images, critic)
    names, latents = ("psnr", "kl", "discriminator_margin"), found.pop("latents")
    return {name: float(found[name].mean()) for name in names} | {"latent_std": float(latents.std(correction=0))}


@torch.no_grad()
def measure_each(vae: AutoencoderKL, images: Images, critic: Critic | None = None) -> dict[str, Tensor]:
    """The same for each image, (N,), and its latents, (N, C, h, w), sampled from the posterior."""
    device, parts, latents = next(vae.parameters()).device, [], []
    for pixels in images.pixels.split(BATCH):
        x = to_float(pixels).to(device)
        z = vae.encode(x)
        y = vae.decode(z.mode())
        found = psnr(x, y)  # (B,)
        margin = (critic.net(x) - critic.net(y)).flatten(1).mean(1) if critic else torch.full_like(found, math.nan)
        parts.append(torch.stack([found, kl_per_value(x, z), margin]))  # (3, B)
        latents.append(z.sample(noise_for(z.mean, len(latents))))
    each = torch.cat(parts, 1)
    return {"psnr": each[0], "kl": each[1], "discriminator_margin": each[2], "latents": torch.cat(latents)}


def noise_for(mean: Tensor, k: int) -> Tensor:
    """The same standard normal numbers whenever batch k is measured."""
    return torch.randn(mean.shape, generator=generator(EVALUATION, k)).to(mean)


def with_scale(vae: AutoencoderKL, images: Images) -> AutoencoderKL:
    """The same autoencoder with its scaling factor,
    measured over latents of these images that are sampled as in training.
    """
    latents = [z.sample(noise_for(z.mean, k)).cpu() for k, z in enumerate(encode(vae, images))]
    vae.cfg = replace(vae.cfg, scaling_factor=measure_scaling_factor(torch.cat(latents)))
    return vae


def evenly(images: Images, n: int) -> Images:
    """At most n images at equal distances, so that every set that was joined has its share. Only the pixels."""
    chosen = torch.linspace(0, len(images) - 1, min(n, len(images))).round().long()
    return Images(images.name, images.pixels[chosen])


# ------------------------------------------------------------------------------------------------------------ pictures


@torch.no_grad()
def draw_sheet(vae: AutoencoderKL, images: Images, path: Path, n: int = 16) -> Path:
    """Originals above, their reconstructions below, in pairs of rows."""
    x = to_float(evenly(images, n).pixels)  # (n, C, H, W)
    y = vae.decode(vae.encode(x.to(next(vae.parameters()).device)).mode()).cpu()
    columns = min(8, len(x))
    rows = [
        half for pair in zip(x.split(columns), y.split(columns), strict=True) for half in pair if len(half) == columns
    ]
    down = [viz.words("image", "原图"), viz.words("decoded", "重建")] * (len(rows) // 2)
    return viz.save_picture(viz.labelled_grid(torch.cat(rows), columns, (), down, integer_scale(vae)), path)


@torch.no_grad()
def draw_traversal(vae: AutoencoderKL, images: Images, path: Path, columns: int = 7, reach: float = 3.0) -> Path:
    """What the latent channels mean: a row for each, in which that channel of one image is shifted everywhere by
    -reach to reach of its standard deviations; the image in the middle is the plain reconstruction."""
    some = to_float(evenly(images, BATCH).pixels).to(next(vae.parameters()).device)
    latents = vae.encode(some).mode()  # (B, C, h, w)
    z, std = latents[:1], latents.std((0, 2, 3), correction=0)  # (1, C, h, w), (C,)
    shifts = torch.linspace(-reach, reach, columns).to(z)
    direction = torch.diag(std)[:, None, :, None, None]  # (C rows, 1, C, 1, 1)
    moved = vae.decode((z + shifts.view(-1, 1, 1, 1) * direction).flatten(0, 1))  # (C rows * columns, ...)
    across = [f"{shift:+g} std" if shift else "0" for shift in shifts.tolist()]
    down = [viz.words(f"channel {k + 1}", f"通道 {k + 1}") for k in range(len(std))]
    return viz.save_picture(viz.labelled_grid(moved, columns, across, down, integer_scale(vae)), path)


def integer_scale(vae: AutoencoderKL) -> int:
    """How many times pictures are enlarged: to about 120 pixels, as whole pixels."""
    return max(1, 120 // vae.cfg.size)


def plot(run: Path, path: Path) -> Path:
    """Loss, PSNR and KL of a run, in one picture."""
    metrics, rows = viz.read_metrics(run), read_csv(run / "quality.csv")
    steps = [int(row["step"]) for row in rows]
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.plot(metrics["step"], metrics["loss"], color="0.85", linewidth=0.5)
    left.plot(metrics["step"], viz.smooth(metrics["loss"]), color="C0")
    left.set(title="loss", xlabel="step")
    middle.plot(steps, [float(row["psnr"]) for row in rows], "o-", color="C1")
    middle.set(title="PSNR of test images, decibels", xlabel="step")
    right.plot(steps, [float(row["kl"]) for row in rows], "o-", color="C2")
    right.set(title="KL, nats a pixel value", xlabel="step")
    for axis in (left, middle, right):
        axis.spines[["top", "right"]].set_visible(False)
    return viz.save_figure(figure, path)


def introduction(flags: AutoencoderFlags, images: Images, vae: AutoencoderKL, loss: VAELoss, device: str) -> str:
    """What is trained on what."""
    f, c = vae.cfg.factor, vae.cfg.latent_channels
    side, weights = images.size // f, count_parameters(vae)
    first = (
        f"{' + '.join(flags.data)}: {len(images):,} images of {images.channels} x {images.size} x {images.size}; "
        f"autoencoder with {weights:,} weights, f = {f}, latents {c} x {side} x {side}, on {device}"
    )
    if not loss.critic:
        return first
    weights = count_parameters(loss.critic.net)
    return f"{first}\nafter {flags.adversarial_after:.0%} of the budget a discriminator with {weights:,} weights joins"


def report(vae: AutoencoderKL, held_out: Images, run: Path) -> dict[str, object]:
    """Print the numbers of a finished autoencoder on test images, draw its pictures, and return where they are."""
    found, scale = validate(vae, held_out), vae.cfg.scaling_factor
    print(f"{len(held_out)} test images: PSNR {found['psnr']:.2f} dB, KL {found['kl']:.4f} nats a pixel value")
    print(
        f"scaling factor {scale:.5f}; the scaled latents of test images have standard deviation {scale * found['latent_std']:.3f}"
    )
    return {
        "reconstructions": draw_sheet(vae, held_out, run / "reconstructions.png"),
        "latent channels": draw_traversal(vae, held_out, run / "traversal.png"),
        "curves": plot(run, run / "curves.png"),
        "model": run / "model",
    }
