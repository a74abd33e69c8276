"""The one training loop of this chapter, on `accelerate`: finetune.py, lora.py, dreambooth.py and controlnet.py differ in what they train
and on what, not in how.

    tuner = Tuner(unet, data, loss, args, accelerator)
    for state in tuner.run(): ...           a State after every optimizer step
    with tuner.averaged(): ...              within, the network holds the averaged weights

What is trained is what requires a gradient. Only that is averaged and kept in checkpoints, so those of a LoRA are small. As in
common/training/loop.py everything random in step k is a function of (seed, k), so a resumed run is bit-equal to one that never
stopped; where accelerate's users draw their batches from a DataLoader, the same takes a seedable sampler, skip_first_batches, and random states
restored after the skip.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel, compute_snr
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common.cli import pick_device, pick_precision
from common.data import Images
from common.errors import UserError, enough_memory
from common.random import DROPOUT, BatchRandom, generator
from common.training.logging import Due, logged
from common.training.loop import Budget, LossTerms, State, TrainConfig, batch_indices
from common.training.record import check_record, fingerprint, keep_settings, record_of
from common.training.settings import FREE, resumed
from common.viz import save_picture
from finetune_diffusers.data.latent_dataset import Encoded
from finetune_diffusers.models import (
    Progress,
    generators,
    load_state,
    make_scheduler,
    native_size,
    open_pipeline,
    save_state,
    sheet,
    states,
)
from finetune_diffusers.pixel_pipeline import open_pixels, pixel_folder
from finetune_diffusers.training.flags import Flags, Preset, settled
from finetune_diffusers.training.memory_usage import WATCHED, Cost, total

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

TRAINED = "trained.safetensors"
RATES = {"constant": "constant_with_warmup", "cosine": "cosine", "linear": "linear"}  # ours -> diffusers' names of them
LOWER = "--batch-size (raise --gradient-accumulation as much), --size, try --checkpointing or --optimizer 8bit, or train a LoRA (lora.py)"

Loss = Callable[[nn.Module, dict[str, Tensor], BatchRandom], LossTerms]


# -------------------------------------------------------------------------------------------------------------- the loss


def min_snr_weights(scheduler: DDPMScheduler, gamma: float) -> Tensor:
    """Weight of the squared error at each noise level (Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting"). (T,)

    With SNR = alpha^2 / sigma^2, the error of x0 is to weigh min(SNR, gamma). An error of the noise is one of x0 times the square
    root of SNR, an error of v one times the square root of SNR + 1, so:

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


@dataclass
class Denoising:
    """The loss of a denoiser of latents: what every one of the four programs minimises.

    scheduler  how the model was trained: its noise levels, and what it predicts
    weights    (T,) weight of the error at each noise level
    empty      (M, D), the empty caption
    drop       share of captions it replaces
    answer     how to ask the network: (net, x, t, words, batch) -> (B, C, h, w)
    """

    scheduler: DDPMScheduler
    weights: Tensor
    empty: Tensor
    caption_dropout: float
    answer: Callable[..., Tensor] = lambda net, x, t, words, batch: net(x, t, words, return_dict=False)[0]

    def __call__(self, net: nn.Module, batch: dict[str, Tensor], draw: BatchRandom) -> LossTerms:
        x0 = batch["mean"] + batch["std"] * draw.randn(batch["mean"].shape)                     # (B, C, h, w)
        u, eps = draw.stratified(len(x0)), draw.randn(x0.shape)
        t = (u * len(self.weights)).long()                                                      # (B,)
        dropped = draw.rand(len(x0)) < self.caption_dropout
        words = torch.where(dropped[:, None, None], self.empty.to(x0.device), batch["words"])   # (B, M, D)
        x = self.scheduler.add_noise(x0, eps, t)
        error = self.answer(net, x, t, words, batch).float() - self.target(x0, eps, t)
        each = self.weights.to(t.device)[t] * error.square().flatten(1).mean(1)
        return LossTerms(each * batch["weight"] if "weight" in batch else each, u)

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the network should have answered."""
        kind = self.scheduler.config.prediction_type
        if kind == "v_prediction":
            return self.scheduler.get_velocity(x0, eps, t)
        return {"epsilon": eps, "sample": x0}[kind]


def denoising(pipe: "StableDiffusionPipeline", data: Encoded, args: Flags) -> Denoising:
    """The loss for a pipeline's model."""
    scheduler = make_scheduler("ddpm", dict(pipe.scheduler.config))
    return Denoising(scheduler, min_snr_weights(scheduler, args.min_snr), data.empty, args.caption_dropout)


# -------------------------------------------------------------------------------------------------------------- the loop


class Tuner:
    """A network, its optimizer and its average, and where they stand. With args.resume, as the run's newest checkpoint left them."""

    def __init__(self, net: nn.Module, data, loss: Loss, args: Flags, accelerator: Accelerator):
        self.data, self.loss, self.args, self.accelerator = data, loss, args, accelerator
        self.weights = {name: weight for name, weight in net.named_parameters() if weight.requires_grad}
        self.cost = Cost(trained=sum(p.numel() for p in self.weights.values()), weights=sum(p.numel() for p in net.parameters()))
        optimizer = make_optimizer(args, self.weights.values())
        self.rates = get_scheduler(RATES[args.lr_schedule], optimizer, num_warmup_steps=round(args.warmup * args.steps), num_training_steps=args.steps)
        self.ema = EMAModel(self.weights.values(), args.ema, use_ema_warmup=True, foreach=True)
        self.net, self.optimizer = accelerator.prepare(net.to(accelerator.device), optimizer)
        self.progress = Progress()
        accelerator.register_save_state_pre_hook(self._save_weights)
        accelerator.register_load_state_pre_hook(self._load_weights)
        accelerator.register_for_checkpointing(self.rates, self.ema, self.progress)
        self.ema.to(accelerator.device)
        if args.resume:
            load_state(accelerator, args.out)
            self.ema.to(accelerator.device)

    def run(self) -> Iterator[State]:
        """Train to the last step, or to a signal (Ctrl-C, SIGTERM), yielding a State after every step."""
        try:
            yield from self._steps()
        finally:
            self.accelerator.end_training()  # a process that ends while its group still listens may abort instead

    def _steps(self) -> Iterator[State]:
        args, progress = self.args, self.progress
        cfg = TrainConfig(args.out, args.steps, lr=args.lr)
        budget = Budget(cfg, progress.seconds, self.accelerator)
        self.net.train()
        with budget.stop_on_signals(), enough_memory(str(self.accelerator.device), LOWER):
            for watched in range(args.steps - progress.step):
                began, lr = time.perf_counter(), self.rates.get_last_lr()[0]
                with self.cost.watching(watched, self.accelerator.device):
                    errors, norm = self._step()
                if watched < WATCHED:
                    self.cost.count(self.net.parameters(), self.optimizer.optimizer, self.ema.shadow_params)
                mean = float(self.accelerator.reduce(errors.per_sample.mean(), "mean"))
                self.rates.step()
                self.ema.step(self.weights.values())  # after the step, so that it does not lag
                progress.step += 1
                budget.tick()
                progress.seconds = budget.seconds
                done = budget.interrupted or progress.step == args.steps
                saved = done or progress.step % args.save_every == 0
                images = args.batch_size * args.gradient_accumulation * self.accelerator.num_processes
                yield State(progress.step, mean, errors, lr, norm, images, budget.seconds, time.perf_counter() - began,
                            progress.step / args.steps, self.ema, saved, done)  # fmt: skip
                if saved:  # when its row of the log is written
                    save_state(self.accelerator, args.out, progress.step)
                if done:
                    return

    def _step(self) -> tuple[LossTerms, float]:
        """One optimizer step: the errors of all its images, and the gradient's norm."""
        parts, norm, rank, world = [], 0.0, self.accelerator.process_index, self.accelerator.num_processes
        for part in range(self.args.gradient_accumulation):
            k = self.progress.step * self.args.gradient_accumulation + part
            indices = batch_indices(len(self.data), self.args.batch_size * world, k, self.args.seed).chunk(world)[rank]
            batch = {name: column.to(self.accelerator.device) for name, column in self.data.batch(indices).items()}
            torch.manual_seed(generator(DROPOUT, self.args.seed, k, rank).initial_seed())
            with self.accelerator.accumulate(self.net):  # processes exchange gradients, and the optimizer steps, at the last part only
                errors = self.loss(self.net, batch, BatchRandom(self.args.seed, k, rank, world, self.accelerator.device))
                self.accelerator.backward(errors.per_sample.mean())  # divides by --gradient-accumulation
                if self.accelerator.sync_gradients:
                    norm = float(self.accelerator.clip_grad_norm_(list(self.weights.values()), self.args.clip))
                    self._check_finite(errors, norm)
                self.optimizer.step()
                self.cost.gradient_bytes = total(p.grad for p in self.weights.values() if p.grad is not None)
                self.optimizer.zero_grad()
            parts.append(LossTerms(errors.per_sample.detach(), errors.u))
        return LossTerms(*map(torch.cat, zip(*parts, strict=True))), norm

    def _check_finite(self, errors: LossTerms, norm: float) -> None:
        """Stop before a NaN reaches the weights. (With fp16, an infinite gradient is a step that the scaler skips.)"""
        if bool(errors.per_sample.isfinite().all()) and (norm < float("inf") or self.accelerator.scaler is not None):
            return
        kept = states(self.args.out)
        raise UserError(
            f"step {self.progress.step + 1}: the loss is {float(errors.per_sample.detach().mean())} and the gradient's norm {norm}, so training stops "
            f"({f'the last good checkpoint is {kept[-1]}' if kept else 'no checkpoint had been written yet'}); "
            f"try a smaller --lr (it was {self.args.lr:g}) or --precision no"
        )

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within this context the network holds the averaged weights."""
        self.ema.store(self.weights.values())
        self.ema.copy_to(self.weights.values())
        try:
            yield
        finally:
            self.ema.restore(self.weights.values())

    # ------------------------------------------------------------------------------------------------ save and resume

    def _save_weights(self, models: list, weights: list, folder: str) -> None:
        """In place of the whole network, accelerate saves what is trained."""
        weights.clear()
        if self.accelerator.is_main_process:
            save_file({name: weight.detach().cpu().contiguous() for name, weight in self.weights.items()}, Path(folder) / TRAINED)

    def _load_weights(self, models: list, folder: str) -> None:
        models.clear()
        saved = load_file(Path(folder) / TRAINED)
        wrong = sorted(name for name in saved.keys() | self.weights.keys()
                       if name not in saved or name not in self.weights or saved[name].shape != self.weights[name].shape)  # fmt: skip
        if wrong:
            raise UserError(f"{folder} is the checkpoint of another network: {wrong[0]} differs (and {len(wrong) - 1} more)")
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(saved[name])


def make_optimizer(args: Flags, weights: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    if args.optimizer == "8bit":
        from bitsandbytes.optim import AdamW8bit  # the flags are checked: it is there

        return AdamW8bit(list(weights), args.lr)
    return torch.optim.AdamW(weights, args.lr, fused=args.optimizer == "fused")


# ------------------------------------------------------------------------------------------------- the run and its pictures


class Studio(NamedTuple):
    """What a program works with, once its flags are settled."""

    args: Any
    pipe: "StableDiffusionPipeline"  # float32, nothing of it requires a gradient
    accelerator: Accelerator
    size: int                        # pixels a side


def begin(args: Flags, program: str, name: str, small: Preset, large: Preset) -> Studio:
    """Open the model and settle every setting. program, name: of the run folder, where none is given."""
    args = resumed(args, (*FREE, "model")) if args.resume else args
    device = pick_device(args.device)
    if args.optimizer == "8bit" and not device.startswith("cuda"):
        raise UserError(f"--optimizer 8bit works on CUDA only, not on {device}; use --optimizer fused")
    accelerator = Accelerator(gradient_accumulation_steps=args.gradient_accumulation, mixed_precision=pick_precision(args.precision, device), cpu=device == "cpu")
    pipe = open_model(args.model, str(accelerator.device))
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.requires_grad_(False)
    if args.checkpointing:
        pipe.unet.enable_gradient_checkpointing()
    if not args.resume:
        args = settled(args, program, name, small, large, pipe.unet, device)
        accelerator.gradient_accumulation_steps = args.gradient_accumulation
    if accelerator.num_processes > 1:  # the main process chose a free folder first
        args = replace(args, out=Path(broadcast_object_list([str(args.out)])[0]))
    size = args.size or native_size(pipe)
    check_size(pipe, size)
    return Studio(args, pipe, accelerator, size)


def check_size(pipe: "StableDiffusionPipeline", size: int) -> None:
    """Refuse a size that the autoencoder cannot encode, before any images are read."""
    if size % pipe.vae_scale_factor:
        raise UserError(f"the autoencoder downsamples images {pipe.vae_scale_factor} times; give a --size that is a multiple of {pipe.vae_scale_factor}, not {size}")


def open_model(name: str, device: str) -> "StableDiffusionPipeline":
    """A Stable Diffusion pipeline, or one of chapter 2's models of pixels. Weights in float32: they are to be trained."""
    root = pixel_folder(name)
    pipe = open_pixels(root, device) if root else open_pipeline(name, device=device, dtype=torch.float32)
    if type(pipe).__name__ != "StableDiffusionPipeline":
        raise UserError(f"{name} holds a {type(pipe).__name__}; the trainings of this chapter take Stable Diffusion 1.x and 2.x (StableDiffusionPipeline)")
    return pipe


def checked(args: Flags, pipe: "StableDiffusionPipeline", images: Images) -> dict[str, Any]:
    """A record of the model and the images, for data.json; a resumed run with others is refused. Call it before the model is changed."""
    record = record_of(images.pixels, images.captions) | {"model": fingerprint(pipe.unet, pipe.vae, pipe.text_encoder)}
    check_record(args, record)
    return record


def follow(tuner: Tuner, draw: Callable[[], Tensor], labels: Sequence[str], record: dict[str, Any]) -> State | None:
    """Run the training to its end: each step is logged, and the validation prompts are drawn with the averaged weights as it goes.

    draw: (N, 3, H, W) pictures, with N labels. record: what checked() returned. Returns the last State; None in a process that only helps to train, and where nothing was left to do.
    """
    args = tuner.args
    if not tuner.accelerator.is_main_process:
        for _ in tuner.run():  # the main process alone writes and draws
            pass
        return None
    keep_settings(args, record)
    due, state = Due(args.sample_every), None
    with closing(logged(tuner.run(), args.out, args.steps)) as states:
        for state in states:
            if due(state) and not state.done:
                with tuner.averaged():
                    save_picture(sheet(draw()[None], [""], shown(labels)), args.out / "samples" / f"step-{state.step:06d}.png")
    return state


def shown(prompts: Sequence[str]) -> list[str]:
    """Prompts as labels of a sheet, whose letters are Latin only."""
    return [prompt if prompt.isascii() else f"prompt {i}" for i, prompt in enumerate(prompts, 1)]


def paint(pipe: "StableDiffusionPipeline", prompts: Sequence[str], args: Flags, size: int, accelerator: Accelerator, **more) -> Tensor:
    """One picture of each prompt, (N, 3, size, size) in [-1, 1] on the CPU. Picture i has seed args.seed + i, whatever its prompt.

    more: what else the pipeline takes for each picture, tensors of N rows
    """
    pipe.set_progress_bar_config(disable=True)
    trained, training, parts = pipe.scheduler, pipe.unet.training, []
    pipe.scheduler = make_scheduler(args.scheduler, dict(trained.config))
    pipe.unet.eval()
    try:
        with torch.no_grad(), accelerator.autocast(), enough_memory(str(pipe.device), "--measure, or the number of --prompts"):
            for i in range(0, len(prompts), 16):
                part = list(prompts[i : i + 16])
                rows = {name: value[i : i + 16] if isinstance(value, Tensor) else value for name, value in more.items()}
                parts.append(pipe(part, height=size, width=size, num_inference_steps=args.sample_steps, guidance_scale=args.guidance,
                                  generator=generators(args.seed + i, len(part)), output_type="pt", **rows).images.float().cpu())  # fmt: skip
    finally:
        pipe.scheduler = trained
        pipe.unet.train(training)
    return torch.cat(parts) * 2 - 1
