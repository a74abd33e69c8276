"""The training of chapter 1, written out: data, network, loss, the loop around them, and pictures at the end.

The trainings of later chapters share these steps in common/training/run.py.
"""

from contextlib import closing

import torch
from torch import Tensor

from common import viz
from common.cli import pick_device
from common.data import load
from common.diffusion.denoiser import Denoiser
from common.diffusion.diffusers_scheduler import check_pair
from common.diffusion.losses import diffusion_loss
from common.diffusion.sampler_spec import Sampler
from common.diffusion.schedules import Schedule, make_schedule
from common.errors import UserError
from common.io.files import write_folder
from common.io.state_dict import count_parameters
from common.models.model_folder import Model, load_model, save_model, start_from
from common.models.unet import UNet, zero_init
from common.models.unet_config import small_unet
from common.training.flags import UNetFlags
from common.training.logging import Due, logged
from common.training.loop import LossTerms, train
from common.training.record import check_record, keep_settings, record_of, start_of
from common.training.run import image_channels, loss_curve_and_model, make_accelerator, print_rows, train_config


def fit_ddpm(flags: UNetFlags, size: int | None, channels: int | None, labels: bool, flip: bool, sampler: str) -> None:
    """Train as the settled flags of train.py say, and show pictures. labels: train a class-conditional network"""
    check_pair(flags.schedule, flags.prediction)
    schedule, final_sampler = make_schedule(flags.schedule), Sampler.parse_plain(sampler)
    schedule.noise_levels(final_sampler.steps)  # an impossible number of steps is refused now, not after the training
    device, run_dir = pick_device(flags.device), flags.run_dir
    begun = load_start(flags)
    channels = image_channels(channels, begun.net.cfg.in_channels if begun else None)
    data = load(flags.data, size, flags.data_dir, channels=channels)
    if labels and data.labels is None:
        raise UserError(f"--class-conditional needs labels, and {flags.data} has none")
    record = record_of(data.pixels, data.labels)
    check_record(flags, record)  # a resumed run must see the same images

    torch.manual_seed(flags.seed)
    classes = len(data.classes) if labels else None
    net = zero_init(UNet(small_unet(data.size, data.channels, flags.channels, flags.layers, classes)))
    if begun:
        start_from(net, begun.net, flags.start)
    loss = make_loss(schedule, flags.prediction, flip, labels)
    accelerator = make_accelerator(flags.precision, device)

    states = train(net, data, loss, train_config(flags), accelerator, resume=flags.resume is not None)
    if not accelerator.is_main_process:
        for _ in states:  # this process trains too, but the main process alone writes and draws
            pass
        return
    keep_settings(flags, record, (lambda folder: save_model(folder, begun)) if begun else None)
    images = f"{len(data):,} images of {data.size}x{data.size}"
    print(f"{flags.data}: {images}; U-Net with {count_parameters(net):,} weights, on {device}")

    def sample(net: UNet, sampler: Sampler, n: int) -> list[Tensor]:
        """Every moment of the reverse process; the last one is the sample. Each (n, C, H, W)."""
        label = {"label": torch.arange(n, device=device) % len(data.classes)} if labels else {}
        denoise = Denoiser(net.eval(), flags.prediction, **label)
        return sampler.frames(denoise, schedule, (n, data.channels, data.size, data.size), flags.seed, device=device)

    due = Due(flags.sample_every)
    with closing(logged(states, run_dir, flags.steps)) as states:
        for state in states:
            if state.saved:
                model = Model(state.ema, schedule, flags.prediction, clip_x0=True)
                write_folder(run_dir / "model", lambda folder, model=model: save_model(folder, model))
            if due(state):
                frames = sample(state.ema, Sampler("ddim", 20), 16)
                viz.save_picture(viz.grid(frames[-1], 8, 160), run_dir / "samples" / f"step-{state.step:06d}.png")

    if state.progress < 1:
        print(f"stopped after step {state.step}; continue with: python 01_ddpm_mnist/train.py --resume {run_dir}")
        return
    frames = sample(state.ema, final_sampler, 64)
    print(f"{state.step} steps in {state.seconds:.0f} s of training")
    rows = {
        "generated images": viz.save_picture(viz.grid(frames[-1], 8, 480), run_dir / "samples.png"),
        "how they appeared": viz.save_picture(viz.strip([f[:6] for f in frames], 10, 400), run_dir / "strip.png"),
        "the same, moving": viz.save_gif([f[:16] for f in frames], run_dir / "process.gif"),
        **loss_curve_and_model(run_dir),
        "more images": f"python 01_ddpm_mnist/sample.py --model {run_dir}",
    }
    print_rows(rows)


def load_start(flags: UNetFlags) -> Model | None:
    """The model of --start, if there is one; a resumed run has a copy of it. It must predict what the run trains."""
    if flags.start is None:
        return None
    other = load_model(start_of(flags, flags.start))
    if other.prediction != flags.prediction:
        problem = f"{flags.start} predicts {other.prediction}, not {flags.prediction}"
        raise UserError(f"{problem}; give --prediction {other.prediction}")
    return other


def make_loss(schedule: Schedule, prediction: str, flip: bool, class_conditional: bool):
    def loss(net, batch: dict[str, Tensor], draw) -> LossTerms:
        """The six steps of training: image, noise level, noise, noise the image in one shot, predict, compare."""
        x0 = batch["image"]  # (B, C, H, W)
        u = draw.stratified(len(x0))  # (B,)
        eps = draw.randn(x0.shape)  # (B, C, H, W)
        if flip:
            x0 = torch.where(draw.rand(len(x0)).view(-1, 1, 1, 1) < 0.5, x0.flip(-1), x0)
        label = {"label": batch["label"]} if class_conditional else {}
        return LossTerms(diffusion_loss(net, schedule, prediction, x0, u, eps, **label), u)

    return loss
