"""What train.py does once its flags are settled: train, save, and show pictures."""

from contextlib import closing

import torch
from accelerate import Accelerator
from torch import Tensor

from common import viz
from common.cli import pick_device, pick_precision
from common.data import Images, load
from common.diffusion.denoiser import Denoiser
from common.diffusion.diffusers_scheduler import check_pair
from common.diffusion.losses import diffusion_loss
from common.diffusion.sampler_spec import Sampler
from common.diffusion.schedules import Schedule, make_schedule
from common.errors import UserError
from common.io.files import write_folder
from common.models.model_folder import Model, load_model, save_model, start_from
from common.models.unet import UNet, UNetConfig, small_unet, zero_init
from common.training.logging import Due, logged
from common.training.loop import LossTerms, State, TrainConfig, train
from common.training.record import check_record, keep_settings, record_of, start_of


def fit(args) -> None:
    """Train as `args` (train.Args, settled) says."""
    check_pair(args.schedule, args.prediction)
    schedule, sampler = make_schedule(args.schedule), Sampler.parse_plain(args.sampler)
    schedule.noise_levels(sampler.steps)  # a number of steps that cannot be is refused now, not after the training
    device = pick_device(args.device)
    data = load(args.data, args.size, args.data_dir, channels=args.image_channels)
    record = record_of(data.pixels, data.labels)
    check_record(args, record)
    torch.manual_seed(args.seed)
    net = zero_init(UNet(unet_config(args, data)))
    if begun := args.start and begun_with(args):
        start_from(net, begun.net, args.start)
    accelerator = Accelerator(mixed_precision=pick_precision(args.precision, device), cpu=device == "cpu")

    states = train(net, data, make_loss(args, schedule), train_config(args), accelerator, resume=args.resume is not None)
    if not accelerator.is_main_process:
        for _ in states:  # it helps to train; the main process alone writes and draws
            pass
        return
    keep_settings(args, record, (lambda folder: save_model(folder, begun)) if begun else None)
    weights = sum(p.numel() for p in net.parameters())
    print(f"{args.data}: {len(data):,} images of {data.size}x{data.size}; U-Net with {weights:,} weights, on {device}")

    due = Due(args.sample_every)
    with closing(logged(states, args.out, args.steps)) as states:
        for state in states:
            if state.saved:
                model = Model(state.ema, schedule, args.prediction, clip_x0=True)
                write_folder(args.out / "model", lambda folder, model=model: save_model(folder, model))
            if due(state):
                frames = sample(state.ema, args, data, schedule, Sampler("ddim", 20), 16)
                viz.save_picture(viz.grid(frames[-1], 8, 160), args.out / "samples" / f"step-{state.step:06d}.png")

    if state.progress < 1:
        print(f"stopped after step {state.step}; continue with: python 01_ddpm_mnist/train.py --resume {args.out}")
    else:
        show(args, state, sample(state.ema, args, data, schedule, sampler, 64))


def begun_with(args) -> Model:
    """The model of args.start, if it answers the same question."""
    other = load_model(start_of(args, args.start))
    if other.prediction != args.prediction:
        raise UserError(f"the U-Net in {args.start} has learned to predict {other.prediction}, and this run trains {args.prediction}; "
                        f"give --prediction {other.prediction}")  # fmt: skip
    return other


def make_loss(args, schedule: Schedule):
    def loss(net, batch: dict[str, Tensor], draw) -> LossTerms:
        """The six steps of training: image, noise level, noise, noise the image in one shot, predict, compare."""
        x0 = batch["image"]                # (B, C, H, W)
        u = draw.stratified(len(x0))       # (B,)
        eps = draw.randn(x0.shape)         # (B, C, H, W)
        if args.flip:
            x0 = torch.where(draw.rand(len(x0)).view(-1, 1, 1, 1) < 0.5, x0.flip(-1), x0)
        label = {"label": batch["label"]} if args.class_conditional else {}
        return LossTerms(diffusion_loss(net, schedule, args.prediction, x0, u, eps, **label), u)

    return loss


def sample(net: UNet, args, data: Images, schedule: Schedule, sampler: Sampler, n: int) -> list[Tensor]:
    """Every moment of the reverse process; the last one is the sample. Each (n, C, H, W)."""
    device = next(net.parameters()).device
    label = {"label": torch.arange(n, device=device) % len(data.classes)} if args.class_conditional else {}
    denoise = Denoiser(net.eval(), args.prediction, **label)
    return sampler.frames(denoise, schedule, (n, data.channels, data.size, data.size), args.seed, device=device)


def show(args, state: State, frames: list[Tensor]) -> None:
    """The pictures at the end of a run, and where they are."""
    pictures = {
        "generated images": viz.save_picture(viz.grid(frames[-1], 8, 480), args.out / "samples.png"),
        "how they appeared": viz.save_picture(viz.strip([f[:6] for f in frames], 10, 400), args.out / "strip.png"),
        "the same, moving": viz.save_gif([f[:16] for f in frames], args.out / "process.gif"),
        "loss curve": viz.plot_run(args.out, args.out / "loss.png"),
        "model": args.out / "model",
    }
    print(f"{state.step} steps in {state.seconds:.0f} s of training")
    for what, path in pictures.items():
        print(f"{what:18} {path}")
    print(f"{'more images':18} python 01_ddpm_mnist/sample.py --model {args.out}")


def train_config(args) -> TrainConfig:
    return TrainConfig(
        out=args.out, steps=args.steps, minutes=args.minutes, batch_size=args.batch_size, lr=args.lr, gradient_accumulation=args.gradient_accumulation,
        save_every=args.save_every, seed=args.seed,
    )  # fmt: skip


def unet_config(args, data: Images) -> UNetConfig:
    if args.class_conditional and data.labels is None:
        raise UserError(f"--class-conditional needs labels, and {args.data} has none")
    return small_unet(data.size, data.channels, args.channels, args.layers, len(data.classes) if args.class_conditional else None)
