"""Trains a model of images without text, as diffusers' own examples do, with a DataLoader; the loop is made exact.

A resumed run is bit-equal to one that never stopped because of

    a seedable sampler      so that epoch e has the same order whenever it begins
    skip_first_batches      so that a resumed epoch goes on where it was
    random numbers by place so that noise and augmentation of a step do not depend on what was drawn before it
    (common/random.py)
    everything registered   network, optimizer and loader by prepare(); rates, average and progress by
                            register_for_checkpointing()
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator, DataLoaderConfiguration, skip_first_batches
from accelerate.utils import GradientAccumulationPlugin
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor
from torch.utils.data import DataLoader

from common.cli import pick_device, pick_precision
from common.data import Images, load
from common.data.sources.workers import PATIENCE, as_arrays, as_tensors, leave_signals, started
from common.errors import UserError, explain
from common.io.files import read_json, write_folder
from common.io.state_dict import count_parameters
from common.io.weight_files import find_weights
from common.models.find_model import scheduler_file, unet_folder
from common.models.pipeline_folder import quiet
from common.training.record import check_record, record_of, start_of
from common.viz import grid, save_picture
from finetune_diffusers.data.augmentation import Augmented
from finetune_diffusers.images import generators
from finetune_diffusers.models import find_model, without_future_warnings
from finetune_diffusers.schedulers import STOCHASTIC, make_scheduler
from finetune_diffusers.training.flags import UnconditionalFlags
from finetune_diffusers.training.loop.trainer import RATES, Trainer, same_folder, tracker
from finetune_diffusers.training.loss import ImageDenoising
from finetune_diffusers.training.publishing import (
    CardFacts,
    create_repository,
    model_card,
    public_name,
    publish,
    shown_settings,
)

WARMUP = 0.05  # share of the steps
LOWER = "--batch-size (raise --gradient-accumulation as much), --size or --channels"


def train_unconditional(args: UnconditionalFlags) -> None:
    """Train from scratch, or from a model. args: settled"""
    quiet()
    device = pick_device(args.device)
    accelerator = Accelerator(
        mixed_precision=pick_precision(args.precision, device),
        cpu=device == "cpu",
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            args.gradient_accumulation, sync_with_dataloader=False
        ),  # steps span epochs
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=args.seed),
        log_with=tracker(args),
    )
    if args.push_to_hub and accelerator.is_main_process:
        create_repository(args.push_to_hub)
    args = same_folder(args)
    unet, scheduler = open_model(start_of(args, args.model)) if args.model else (None, new_scheduler(args.prediction))
    size = args.size or (unet.config.sample_size if unet else None) or 32
    images = load(args.data, size, args.data_dir, n=args.n)
    unet = unet or new_unet(args.channels, images, args.seed)
    images = images.in_channels(unet.config.in_channels)
    record = record_of(images.pixels)
    check_record(args, record)
    check_fit(args.batch_size * accelerator.num_processes, accelerator.num_processes, images, unet)

    trainer = UnconditionalTrainer(unet, scheduler, images, args, accelerator)
    if accelerator.is_main_process:
        weights, kind = count_parameters(unet), f"{images.channels}x{images.size}x{images.size}"
        print(
            f"{args.data}: {len(images):,} images of {kind}, {', '.join(args.augment) or 'not'} augmented; "
            f"{weights:,} weights{f' from {args.model}' if args.model else ''}; {accelerator.num_processes} process(es) on {accelerator.device}"
        )
    state = trainer.follow(
        "05_finetune_diffusers/train_unconditional.py",
        record,
        lambda net: grid(trainer.samples(net, 16), 8, 160),
        lambda net: write_folder(args.out / "model", DDPMPipeline(net, scheduler).save_pretrained),
        DDPMPipeline(unet, scheduler).save_pretrained if args.model else None,
    )
    if accelerator.is_main_process and (state is None or state.step == args.steps):
        finish(trainer, trained=state is not None)


def finish(trainer: "UnconditionalTrainer", trained: bool) -> None:
    """The measurements and the pictures at the end.
    A resumed run with no step left makes them as well: it may have been killed in between.
    """
    out, steps, seconds = trainer.args.out, trainer.progress.step, trainer.progress.seconds
    if not trained:
        print(f"all {steps} steps are done; give more of them with --steps")
    trainer.report(trained)
    with trainer.averaged() as unet:
        print(save_picture(grid(trainer.samples(unet, 32), 8, 384), out / "samples.png"))
    args = trainer.args
    if args.push_to_hub:
        use = f'from diffusers import DDPMPipeline\n\nimage = DDPMPipeline.from_pretrained("{args.push_to_hub}")().images[0]'
        base, settings = args.model and public_name(args.model), shown_settings(vars(args))
        facts = CardFacts(base, "Unconditional model", use, args.data, settings)
        files = {"": out / "model", "samples.png": out / "samples.png"}
        print(publish(args.push_to_hub, files, model_card(facts, "samples.png")))
    print(f"{out / 'model'}: for DDPMPipeline.from_pretrained, or --model here; {steps} steps in {seconds:.0f} s")


# ----------------------------------------------------------------------------------------------------------- the parts


def new_unet(channels: tuple[int, ...], images: Images, seed: int) -> UNet2DModel:
    """From scratch: attention at the lowest resolution only, as in chapter 1."""
    n = len(channels)
    if images.size % 2 ** (n - 1):
        raise UserError(
            f"{n} resolutions need images whose side is a multiple of {2 ** (n - 1)}, not {images.size}; give another --size or fewer --channels"
        )
    torch.manual_seed(seed)
    return zero_outputs(
        UNet2DModel(
            sample_size=images.size,
            in_channels=images.channels,
            out_channels=images.channels,
            layers_per_block=1,
            norm_num_groups=8,
            attn_norm_num_groups=8,
            block_out_channels=channels,
            attention_head_dim=None,
            resnet_time_scale_shift="scale_shift",
            down_block_types=("DownBlock2D",) * (n - 1) + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (n - 1),
        )
    )


def zero_outputs(unet: UNet2DModel) -> UNet2DModel:
    """Initialise every residual block as the identity, and the whole network as zero: calmer and faster to train.
    diffusers does not do it.
    """
    last = [part.conv2 for part in unet.modules() if isinstance(part, ResnetBlock2D)] + [unet.conv_out]
    last += [part.to_out[0] for part in unet.modules() if isinstance(part, Attention)]
    for layer in last:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return unet


def new_scheduler(prediction: str) -> DDPMScheduler:
    """The noise schedule of a training from scratch."""
    return DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type=prediction, timestep_spacing="trailing")


def open_model(name: str | Path) -> tuple[UNet2DModel, DDPMScheduler]:
    """A trained network and how it was trained; what this program cannot train is refused."""
    folder = find_model(name)
    unet, scheduler = unet_folder(folder), scheduler_file(folder)
    config = read_json(unet / "config.json") if (unet / "config.json").exists() else {}
    if config.get("_class_name") != "UNet2DModel":
        raise UserError(
            f"{folder} holds no UNet2DModel but a {config.get('_class_name') or 'pipeline without a U-Net'}; finetune.py continues models that read text"
        )
    if config.get("num_class_embeds"):
        raise UserError(
            f"{folder} is class-conditional; this program trains without labels, 01_ddpm_mnist/train.py --class-conditional with them"
        )
    inputs, outputs = config.get("in_channels", 3), config.get("out_channels", 3)
    if inputs != outputs:
        raise UserError(
            f"the network in {folder} has {inputs} input and {outputs} output channels, as with a learned variance; "
            "this program trains networks with as many of both"
        )
    if "beta_schedule" not in read_json(scheduler):
        raise UserError(
            f"the scheduler in {folder} has no beta_schedule; this program continues models with the noise schedule of a DDPMScheduler"
        )
    try:
        with without_future_warnings():
            net = UNet2DModel.from_pretrained(unet, dtype=torch.float32, variant=find_weights(unet).variant)
            return net, DDPMScheduler.from_pretrained(scheduler.parent)
    except UserError:
        raise
    except Exception as problem:  # diffusers and safetensors raise their own exceptions
        raise UserError(f"the model in {folder} cannot be opened ({explain(problem)})") from problem


def check_fit(images_per_step: int, processes: int, images: Images, unet: UNet2DModel) -> None:
    """Refuse images that do not fit the network, or the batch."""
    if unet.config.in_channels not in (1, 3):
        raise UserError(
            f"this network draws images with {unet.config.in_channels} channels; this program trains on grey (1) and colour (3) images"
        )
    halvings = 2 ** (len(unet.config.block_out_channels) - 1)
    if images.size % halvings:
        raise UserError(
            f"this network halves images {len(unet.config.block_out_channels) - 1} times, so --size must be a multiple of {halvings}, not {images.size}"
        )
    if len(images) < images_per_step:
        raise UserError(
            f"{len(images)} images do not fill a batch of {images_per_step // processes} in {processes} process(es); "
            "give a smaller --batch-size, or more images"
        )


# ------------------------------------------------------------------------------------------------------------ the loop


class UnconditionalTrainer(Trainer):
    """The trainer whose batches come from a DataLoader, and which draws samples without a pipeline."""

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: DDPMScheduler,
        images: Images,
        args: UnconditionalFlags,
        accelerator: Accelerator,
    ):
        super().__init__(unet, ImageDenoising(scheduler), args, accelerator, LOWER)
        self.scheduler, self.dataset = scheduler, Augmented(images, args.augment, args.seed)
        loader = DataLoader(
            self.dataset,
            args.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=args.workers,
            collate_fn=as_arrays,
            worker_init_fn=leave_signals,
            timeout=PATIENCE if args.workers else 0,
        )
        optimizer = torch.optim.AdamW(unet.parameters(), args.lr)
        (self.loader,) = self.prepare(optimizer, RATES["cosine"], WARMUP, 3 / 4, loader)
        self.stream = self.batches(self.progress.step * args.gradient_accumulation)

    def batches(self, k: int) -> Iterator[tuple[int, Tensor]]:
        """(number, images) of batch k, k + 1, ..., through as many epochs as are asked for.
        Images are (B, C, H, W) in [-1, 1].
        """
        epoch, skip = divmod(k, len(self.loader))
        while True:
            self.dataset.set_epoch(epoch)
            self.loader.set_epoch(epoch)
            for batch in started(skip_first_batches(self.loader, skip) if skip else self.loader):
                yield k, as_tensors(batch["image"]).to(self.accelerator.device)
                k += 1
            epoch, skip = epoch + 1, 0

    def batch(self, k: int) -> dict[str, Tensor]:
        number, images = next(self.stream)
        assert number == k, f"batch {number} came where batch {k} was due"
        return {"image": images}

    def samples(self, unet: UNet2DModel, n: int) -> Tensor:
        """n pictures, (n, C, S, S). Picture i has seed args.seed + i: the same noise as training goes on."""
        scheduler = make_scheduler(self.args.scheduler, dict(self.scheduler.config))
        size, draws = self.dataset.pixels.shape[-1], generators(self.args.seed, n)
        return sample(unet.eval(), scheduler, size, self.args.sample_steps, draws, self.args.scheduler in STOCHASTIC)


@torch.no_grad()
def sample(
    unet: UNet2DModel,
    scheduler: DDPMScheduler,  # or any other of diffusers
    size: int,  # side in pixels
    steps: int,
    draws: list[torch.Generator],  # one for each picture, for its first noise and for what its scheduler adds
    stochastic: bool,  # whether the scheduler adds noise at every step
) -> Tensor:
    """The reverse process in five lines of diffusers; its pipelines do nothing else. (n, C, size, size) in [-1, 1]"""
    device, shape = next(unet.parameters()).device, (unet.config.in_channels, size, size)
    scheduler.set_timesteps(steps)
    x = torch.stack([torch.randn(shape, generator=draw) for draw in draws]).to(device) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        prediction = unet(scheduler.scale_model_input(x, t), t.to(device), return_dict=False)[0]
        x = scheduler.step(prediction, t, x, **({"generator": draws} if stochastic else {})).prev_sample
    return x.cpu().clamp(-1, 1)
