"""The losses of the chapter: denoising of latents with text and min-SNR weighting, and denoising of plain images.

loss = LatentDenoising(...)
loss(net, batch, draws).per_sample           (B,) the error of each image
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.training_utils import compute_snr
from torch import Tensor, nn

from common.random import BatchRandom
from common.training.loop import LossTerms
from finetune_diffusers.data.latent_dataset import CaptionedLatents
from finetune_diffusers.schedulers import make_scheduler
from finetune_diffusers.training.flags import TuningFlags

# (net, x, t, batch) -> (B, C, h, w)
Predict = Callable[[nn.Module, Tensor, Tensor, dict[str, Tensor]], Tensor]


def min_snr_weights(scheduler: DDPMScheduler, gamma: float) -> Tensor:
    """Weight of the squared error at each noise level (Hang et al.
    2023, "Efficient Diffusion Training via Min-SNR Weighting"). (T,)

    With SNR = alpha^2 / sigma^2, the error of x0 is to weigh min(SNR, gamma). An error of eps is one of x0 times the
    square root of SNR, an error of v one times the square root of SNR + 1, so:

        prediction   sample (x0)        epsilon                  v
        weight       min(SNR, gamma)    min(SNR, gamma) / SNR    min(SNR, gamma) / (SNR + 1)

    gamma = 0 is off: all ones.
    """
    kind, T = scheduler.config.prediction_type, scheduler.config.num_train_timesteps
    if not gamma:
        return torch.ones(T)
    snr = compute_snr(scheduler, torch.arange(T))
    if kind == "epsilon":
        return (gamma / snr).clamp(max=1)  # also where SNR is 0, and the quotient of the table is 0 / 0
    return snr.clamp(max=gamma) / (snr + 1 if kind == "v_prediction" else 1)


def target(scheduler: DDPMScheduler, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """What the network should predict."""
    kind = scheduler.config.prediction_type
    return scheduler.get_velocity(x0, eps, t) if kind == "v_prediction" else {"epsilon": eps, "sample": x0}[kind]


def predict_with_unet(net: nn.Module, x: Tensor, t: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """The U-Net's own prediction."""
    more = {}
    if "pooled" in batch:  # Stable Diffusion XL
        more["added_cond_kwargs"] = {"text_embeds": batch["pooled"], "time_ids": batch["time_ids"]}
    return net(x, t, batch["text"], **more, return_dict=False)[0]


@dataclass
class LatentDenoising:
    """The loss of a text-conditional denoiser of latents, which finetune.py, lora.py,
    dreambooth.py and controlnet.py minimise.

    scheduler        how the model was trained: its noise levels, and what it predicts
    weights          (T,) weight of the error at each noise level
    empty            columns of a batch that hold its captions, each for the empty caption: {"text": (M, D)}
    caption_dropout  share of captions that are replaced by the empty one
    predict          how to call the network: (net, x, t, batch) -> (B, C, h, w)
    noise_offset     standard deviation of noise that is equal at all pixels of a channel (Guttenberg 2023, "Diffusion
                     with Offset Noise"); 0 is off
    """

    scheduler: DDPMScheduler
    weights: Tensor
    empty: dict[str, Tensor]
    caption_dropout: float
    predict: Predict = predict_with_unet
    noise_offset: float = 0.0

    def __call__(self, net: nn.Module, batch: dict[str, Tensor], draws: BatchRandom) -> LossTerms:
        x0 = batch["mean"] + batch["std"] * draws.randn(batch["mean"].shape)  # (B, C, h, w)
        u, eps = draws.stratified(len(x0)), draws.randn(x0.shape)
        t = (u * len(self.weights)).long()  # (B,)
        dropped = draws.rand(len(x0)) < self.caption_dropout
        for name, empty in self.empty.items():
            which = dropped.view(-1, *[1] * empty.ndim)  # (B, 1, ...)
            batch = batch | {name: torch.where(which, empty.to(x0.device), batch[name])}
        if self.noise_offset:
            eps = eps + self.noise_offset * draws.randn((*x0.shape[:2], 1, 1))
        x = self.scheduler.add_noise(x0, eps, t)
        error = self.predict(net, x, t, batch).float() - target(self.scheduler, x0, eps, t)
        per_sample = self.weights.to(t.device)[t] * error.square().flatten(1).mean(1)
        return LossTerms(per_sample * batch["weight"] if "weight" in batch else per_sample, u)


def latent_denoising(
    pipe: StableDiffusionPipeline, data: CaptionedLatents, args: TuningFlags, predict: Predict = predict_with_unet
) -> LatentDenoising:
    """The loss for a pipeline's model."""
    scheduler = make_scheduler("ddpm", dict(pipe.scheduler.config))
    return LatentDenoising(
        scheduler,
        min_snr_weights(scheduler, args.min_snr),
        data.empty,
        args.caption_dropout,
        predict,
        args.noise_offset,
    )


@dataclass
class ImageDenoising:
    """The loss of an unconditional denoiser: the six steps of chapter 1 with the names of diffusers."""

    scheduler: DDPMScheduler

    def __call__(self, net: nn.Module, batch: dict[str, Tensor], draws: BatchRandom) -> LossTerms:
        x0 = batch["image"]  # (B, C, H, W)
        u, eps = draws.stratified(len(x0)), draws.randn(x0.shape)
        t = (u * self.scheduler.config.num_train_timesteps).long()  # (B,)
        x = self.scheduler.add_noise(x0, eps, t)
        prediction = net(x, t, return_dict=False)[0].float()
        return LossTerms((prediction - target(self.scheduler, x0, eps, t)).square().flatten(1).mean(1), u)
