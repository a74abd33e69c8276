"""What train_unconditional.py does once its flags are settled. The loop is the one of diffusers' own examples, made exact.

What it takes for a resumed run to be bit-equal to one that never stopped:

    a seedable sampler      so that epoch e has the same order whenever it begins
    skip_first_batches      so that a resumed epoch goes on where it was
    random numbers by place so that noise and augmentation of a step do not depend on what was drawn before it (common/random.py)
    everything registered   network, optimizer and loader by prepare(); rates, average and progress by register_for_checkpointing()
"""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator, DataLoaderConfiguration, skip_first_batches
from accelerate.utils import GradientAccumulationPlugin, broadcast_object_list
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.utils.data import DataLoader

from common.cli import pick_device, pick_precision
from common.data import Images, load
from common.data.sources.workers import PATIENCE, as_arrays, as_tensors, leave_signals, started
from common.errors import UserError, enough_memory, explain
from common.io.files import read_json, write_folder, write_json
from common.io.weight_files import find_weights
from common.models.find_model import scheduler_file, unet_folder
from common.random import DROPOUT, BatchRandom, generator
from common.training.logging import Due, logged
from common.training.loop import Budget, LossTerms, State, TrainConfig
from common.training.record import check_record, keep_settings, record_of, start_of
from common.viz import grid, save_picture
from finetune_diffusers.data.augmentation import Augmented
from finetune_diffusers.models import (
    Progress,
    find_model,
    generators,
    load_state,
    make_scheduler,
    no_notes,
    quiet,
    save_state,
    states,
)
from finetune_diffusers.training.memory_usage import WATCHED, Cost, total

WARMUP = 0.05    # share of the steps
LOWER = "--batch-size (raise --gradient-accumulation as much), --size or --channels"


def fit(args) -> None:
    """Train as `args` (train_unconditional.Args, settled) says."""
    quiet()
    device = pick_device(args.device)
    accelerator = Accelerator(
        mixed_precision=pick_precision(args.precision, device), cpu=device == "cpu",
        gradient_accumulation_plugin=GradientAccumulationPlugin(args.gradient_accumulation, sync_with_dataloader=False),  # steps span epochs
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=args.seed),
    )  # fmt: skip
    if accelerator.num_processes > 1:  # the main process chose a free folder first
        args = replace(args, out=Path(broadcast_object_list([str(args.out)])[0]))
    unet, noise = open_model(args) if args.model else (None, new_scheduler(args))
    images = load(args.data, args.size or (unet.config.sample_size if unet else None) or 32, args.data_dir, n=args.n)
    unet = unet or new_unet(args, images)
    images = images.in_channels(unet.config.in_channels)
    record = record_of(images.pixels)
    check_record(args, record)
    check_fit(args, images, unet, accelerator.num_processes)

    trainer = Trainer(unet, noise, images, args, accelerator)
    if not accelerator.is_main_process:
        for _ in trainer.run():  # the main process alone writes and draws
            pass
        return
    keep_settings(args, record, DDPMPipeline(unet, noise).save_pretrained if args.model else None)
    weights = sum(p.numel() for p in unet.parameters())
    print(f"{args.data}: {len(images):,} images of {images.channels}x{images.size}x{images.size}, {', '.join(args.augment) or 'not'} augmented; "
          f"{weights:,} weights{f' from {args.model}' if args.model else ''}; {accelerator.num_processes} process(es) on {accelerator.device}")  # fmt: skip
    follow(trainer, args, images)


def follow(trainer: "Trainer", args, images: Images) -> None:
    """Run to the end, with a log, samples as it goes, and the model saved."""
    due, state = Due(args.sample_every), None
    with closing(logged(trainer.run(), args.out, args.steps)) as steps:
        for state in steps:
            if state.saved:
                with trainer.averaged() as unet:
                    pipe = DDPMPipeline(unet=unet, scheduler=trainer.noise)
                    write_folder(args.out / "model", pipe.save_pretrained)
            if due(state) and not state.done:
                save_picture(grid(trainer.samples(16), 8, 160), args.out / "samples" / f"step-{state.step:06d}.png")
    if state is not None and state.step < args.steps:
        print(f"stopped after step {state.step}; continue with: python 05_finetune_diffusers/train_unconditional.py --resume {args.out}")
        return
    finish(trainer, args, trained=state is not None)


def finish(trainer: "Trainer", args, trained: bool) -> None:
    """The measurements and the pictures at the end. A resumed run with no step left makes them as well: it may have been killed in between."""
    steps, seconds = trainer.progress.step, trainer.progress.seconds
    if trained:
        print(f"\nmemory\n{trainer.cost.table()}\n")
        write_json(args.out / "results.json", {"cost": trainer.cost.as_json(), "seconds": seconds, "steps": steps})
    else:
        print(f"all {steps} steps are done; give more of them with --steps")
        if not (args.out / "results.json").exists():  # what the steps held in memory is not known any more
            write_json(args.out / "results.json", {"seconds": seconds, "steps": steps})
    print(save_picture(grid(trainer.samples(32), 8, 384), args.out / "samples.png"))
    print(f"{args.out / 'model'}: for DDPMPipeline.from_pretrained, or --model here; {steps} steps in {seconds:.0f} s")


# -------------------------------------------------------------------------------------------------------------- the parts


def new_unet(args, images: Images) -> UNet2DModel:
    """From scratch: attention at the lowest resolution only, as in chapter 1."""
    n = len(args.channels)
    if images.size % 2 ** (n - 1):
        raise UserError(f"{n} resolutions need images whose side is a multiple of {2 ** (n - 1)}, not {images.size}; give another --size or fewer --channels")
    torch.manual_seed(args.seed)
    return begin_at_zero(UNet2DModel(
        sample_size=images.size, in_channels=images.channels, out_channels=images.channels, layers_per_block=1, norm_num_groups=8, attn_norm_num_groups=8,
        block_out_channels=args.channels, attention_head_dim=None, resnet_time_scale_shift="scale_shift",
        down_block_types=("DownBlock2D",) * (n - 1) + ("AttnDownBlock2D",), up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (n - 1),
    ))  # fmt: skip


def begin_at_zero(unet: UNet2DModel) -> UNet2DModel:
    """Every residual block as the identity, and the whole network as zero: calmer and faster to train. (diffusers leaves it to you.)"""
    last = [part.conv2 for part in unet.modules() if isinstance(part, ResnetBlock2D)] + [unet.conv_out]
    last += [part.to_out[0] for part in unet.modules() if isinstance(part, Attention)]
    for layer in last:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return unet


def new_scheduler(args) -> DDPMScheduler:
    return DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type=args.prediction, timestep_spacing="trailing")


def open_model(args) -> tuple[UNet2DModel, DDPMScheduler]:
    """A trained network and how it was trained; what this program cannot train is refused."""
    folder = find_model(start_of(args, args.model))
    unet, scheduler = unet_folder(folder), scheduler_file(folder)
    config = read_json(unet / "config.json") if (unet / "config.json").exists() else {}
    if config.get("_class_name") != "UNet2DModel":
        raise UserError(f"{folder} holds no UNet2DModel but a {config.get('_class_name') or 'pipeline without a U-Net'}; finetune.py continues models that read text")
    if config.get("num_class_embeds"):
        raise UserError(f"{folder} is class-conditional; this program trains without labels, 01_ddpm_mnist/train.py --class-conditional with them")
    inputs, outputs = config.get("in_channels", 3), config.get("out_channels", 3)
    if inputs != outputs:
        raise UserError(f"the network in {folder} has {inputs} input and {outputs} output channels, as with a learned variance; this program trains networks with as many of both")
    if "beta_schedule" not in read_json(scheduler):
        raise UserError(f"the scheduler in {folder} has no beta_schedule; this program continues models with the noise schedule of a DDPMScheduler")
    try:
        with no_notes():
            net = UNet2DModel.from_pretrained(unet, torch_dtype=torch.float32, variant=find_weights(unet).variant)
            return net, DDPMScheduler.from_pretrained(scheduler.parent)
    except UserError:
        raise
    except Exception as problem:  # diffusers, safetensors, each their own
        raise UserError(f"the model in {folder} cannot be opened ({explain(problem)})") from problem


def check_fit(args, images: Images, unet: UNet2DModel, processes: int) -> None:
    """Refuse what would fail only later, and less clearly."""
    if unet.config.in_channels not in (1, 3):
        raise UserError(f"this network draws images with {unet.config.in_channels} channels; this program trains on grey (1) and colour (3) images")
    halvings = 2 ** (len(unet.config.block_out_channels) - 1)
    if images.size % halvings:
        raise UserError(f"this network halves images {len(unet.config.block_out_channels) - 1} times, so --size must be a multiple of {halvings}, not {images.size}")
    if len(images) < args.batch_size * processes:
        raise UserError(f"{len(images)} images do not fill a batch of {args.batch_size} in {processes} process(es); give a smaller --batch-size, or more images")


# --------------------------------------------------------------------------------------------------------------- the loop


class Trainer:
    """Network, optimizer, average, loader, and where they stand; with args.resume, as the newest checkpoint left them."""

    def __init__(self, unet: UNet2DModel, noise: DDPMScheduler, images: Images, args, accelerator: Accelerator):
        self.noise, self.args, self.accelerator, self.progress = noise, args, accelerator, Progress()
        self.dataset, weights = Augmented(images, args.augment, args.seed), sum(p.numel() for p in unet.parameters())
        self.cost = Cost(trained=weights, weights=weights)
        loader = DataLoader(self.dataset, args.batch_size, shuffle=True, drop_last=True, num_workers=args.workers,
                            collate_fn=as_arrays, worker_init_fn=leave_signals, timeout=PATIENCE if args.workers else 0)  # fmt: skip
        optimizer = torch.optim.AdamW(unet.parameters(), args.lr)
        self.rates = get_cosine_schedule_with_warmup(optimizer, round(WARMUP * args.steps), args.steps)  # not prepared: it would step once a process
        self.ema = EMAModel(unet.parameters(), args.ema, use_ema_warmup=True, power=3 / 4, foreach=True)
        self.net, self.optimizer, self.loader = accelerator.prepare(unet, optimizer, loader)
        accelerator.register_for_checkpointing(self.rates, self.ema, self.progress)
        self.ema.to(accelerator.device)
        if args.resume:
            load_state(accelerator, args.out)
            self.ema.to(accelerator.device)

    def run(self) -> Iterator[State]:
        """Train to the last step, or to a signal (Ctrl-C, SIGTERM), yielding a State after every step."""
        try:
            yield from self.steps()
        finally:
            self.accelerator.end_training()  # a process that ends while its group still listens may abort instead

    def steps(self) -> Iterator[State]:
        args, progress, accelerator = self.args, self.progress, self.accelerator
        budget = Budget(TrainConfig(args.out, args.steps, lr=args.lr), progress.seconds, accelerator)
        batches, left = self.batches(progress.step * args.gradient_accumulation), args.steps - progress.step
        with budget.stop_on_signals(), enough_memory(str(accelerator.device), LOWER):
            for watched in range(left):
                began, lr = time.perf_counter(), self.rates.get_last_lr()[0]
                with self.cost.watching(watched, accelerator.device):
                    errors, norm = self.step(batches)
                if watched < WATCHED:
                    self.cost.count(self.net.parameters(), self.optimizer.optimizer, self.ema.shadow_params)
                mean = float(accelerator.reduce(errors.per_sample.mean(), "mean"))
                self.check_finite(mean, norm)
                self.rates.step()
                self.ema.step(accelerator.unwrap_model(self.net).parameters())  # after the step, so that it does not lag
                progress.step += 1
                budget.tick()
                progress.seconds = budget.seconds
                done = budget.interrupted or progress.step == args.steps
                saved = done or progress.step % args.save_every == 0
                images = args.batch_size * args.gradient_accumulation * accelerator.num_processes
                yield State(progress.step, mean, errors, lr, norm, images, budget.seconds, time.perf_counter() - began,
                            progress.step / args.steps, self.ema, saved, done)  # fmt: skip
                if saved:  # when its row of the log is written
                    save_state(accelerator, args.out, progress.step)
                if done:
                    return

    def batches(self, k: int) -> Iterator[tuple[int, Tensor]]:
        """(number, images) of batch k, k + 1, ..., through as many epochs as anybody asks for."""
        epoch, skip = divmod(k, len(self.loader))
        while True:
            self.dataset.set_epoch(epoch)
            self.loader.set_epoch(epoch)
            for batch in started(skip_first_batches(self.loader, skip) if skip else self.loader):
                yield k, as_tensors(batch["image"]).to(self.accelerator.device)
                k += 1
            epoch, skip = epoch + 1, 0

    def step(self, batches: Iterator[tuple[int, Tensor]]) -> tuple[LossTerms, float]:
        """One optimizer step on `accumulate` batches: the errors of all its images, and the gradient's norm."""
        parts, norm, accelerator = [], 0.0, self.accelerator
        self.net.train()
        for _ in range(self.args.gradient_accumulation):
            k, x0 = next(batches)                                                                # (B, C, H, W)
            draw = BatchRandom(self.args.seed, k, accelerator.process_index, accelerator.num_processes, accelerator.device)
            torch.manual_seed(generator(DROPOUT, self.args.seed, k, accelerator.process_index).initial_seed())
            with accelerator.accumulate(self.net):  # processes exchange gradients, and the optimizer steps, at the last batch only
                errors = self.loss(x0, draw)
                accelerator.backward(errors.per_sample.mean())  # divides by `accumulate`
                if accelerator.sync_gradients:
                    norm = float(accelerator.clip_grad_norm_(self.net.parameters(), self.args.clip))
                self.optimizer.step()
                self.cost.gradient_bytes = total(p.grad for p in self.net.parameters() if p.grad is not None)
                self.optimizer.zero_grad()
            parts.append(LossTerms(errors.per_sample.detach(), errors.u))
        return LossTerms(*map(torch.cat, zip(*parts, strict=True))), norm

    def loss(self, x0: Tensor, draw: BatchRandom) -> LossTerms:
        """The six steps of chapter 1, in diffusers' words."""
        u, eps = draw.stratified(len(x0)), draw.randn(x0.shape)
        t = (u * self.noise.config.num_train_timesteps).long()                                   # (B,)
        x = self.noise.add_noise(x0, eps, t)
        answer = self.net(x, t, return_dict=False)[0]
        kind = self.noise.config.prediction_type
        target = self.noise.get_velocity(x0, eps, t) if kind == "v_prediction" else {"epsilon": eps, "sample": x0}[kind]
        return LossTerms((answer.float() - target).square().flatten(1).mean(1), u)

    def check_finite(self, loss: float, norm: float) -> None:
        """Stop before a NaN is kept. (With fp16, an infinite gradient is a step that the scaler skips.)"""
        if loss - loss == 0 and (norm - norm == 0 or self.accelerator.scaler is not None):
            return
        kept = states(self.args.out)
        raise UserError(f"step {self.progress.step + 1}: the loss is {loss} and the gradient's norm {norm}, so training stops "
                        f"({f'the last good checkpoint is {kept[-1]}' if kept else 'no checkpoint had been written yet'}); "
                        f"try a smaller --lr (it was {self.args.lr:g}) or --precision no")  # fmt: skip

    # --------------------------------------------------------------------------------------------- the averaged network

    @contextmanager
    def averaged(self) -> Iterator[UNet2DModel]:
        """Within this context the network holds the averaged weights."""
        unet = self.accelerator.unwrap_model(self.net)
        self.ema.store(unet.parameters())
        self.ema.copy_to(unet.parameters())
        try:
            yield unet.eval()
        finally:
            self.ema.restore(unet.parameters())

    def samples(self, n: int) -> Tensor:
        """n pictures of the averaged network, (n, C, S, S). Picture i has seed args.seed + i: the same noise as training goes on."""
        scheduler = make_scheduler(self.args.scheduler, dict(self.noise.config))
        with self.averaged() as unet:
            return draw_samples(unet, scheduler, n, self.dataset.pixels.shape[-1], self.args)


@torch.no_grad()
def draw_samples(unet: UNet2DModel, scheduler, n: int, size: int, args) -> Tensor:
    """The reverse process in five lines of diffusers; its pipelines do nothing else. (n, C, size, size) in [-1, 1]"""
    device, shape = next(unet.parameters()).device, (unet.config.in_channels, size, size)
    chances = generators(args.seed, n)  # one for each picture, for its first noise and for what its scheduler adds
    scheduler.set_timesteps(args.sample_steps)
    x = torch.stack([torch.randn(shape, generator=chance) for chance in chances]).to(device) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        answer = unet(scheduler.scale_model_input(x, t), t.to(device), return_dict=False)[0]
        extra = {"generator": chances} if args.scheduler in ("ddpm", "euler-a", "dpm++-sde") else {}
        x = scheduler.step(answer, t, x, **extra).prev_sample
    return x.cpu().clamp(-1, 1)
