"""Train a DDPM: digits out of noise.

  python 01_ddpm_mnist/train.py                                    MNIST if it can be had, else the embedded digits
  python 01_ddpm_mnist/train.py --data cifar10 --minutes 60
  python 01_ddpm_mnist/train.py --data path/to/faces --size 64
  python 01_ddpm_mnist/train.py --resume runs/01_ddpm_mnist/mnist
"""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

from common.cli import free_folder, pick_device, pick_precision, positive, run, writable_folder
from common.errors import UserError
from common.files import read_json, write_json


@dataclass(frozen=True)
class Args:
    data: str = "auto"
    """auto, digits, mnist, fashion_mnist, cifar10, flowers102, or a folder of images."""
    data_dir: Path = Path("data")
    """Where local copies are looked for, and where downloads go."""
    size: int | None = None
    """Pixels a side; by default the data's own."""
    class_conditional: bool = False
    """Also tell the network the label, so that samples can be asked for by class."""
    flip: bool | None = None
    """Mirror images at random (no for digits and clothes, yes for photographs)."""

    steps: int | None = None
    """Budget in optimizer steps ..."""
    minutes: float | None = None
    """... or in wall-clock time (the default). The learning rate follows the budget."""
    batch: int | None = None
    """Images per step and process."""
    lr: float | None = None
    """Peak learning rate of AdamW."""
    accumulate: int = 1
    """Batches per optimizer step."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Mixed precision. auto is bf16 where the device is fast at it (recent GPUs, CPUs with AVX512-BF16), else no."""

    channels: tuple[int, ...] | None = None
    """Width of the U-Net at each resolution, highest resolution first."""
    layers: int = 1
    """Residual blocks at each resolution."""
    schedule: str = "cosine"
    """linear, cosine, sigmoid, scaled_linear, edm or flow."""
    prediction: str = "v"
    """What the network predicts: eps, x0 or v (edm and flow with the schedule of that name)."""

    out: Path | None = None
    """The run folder; by default runs/01_ddpm_mnist/<data>, numbered if that is taken."""
    resume: Path | None = None
    """Continue the run in this folder; all other settings but the budget come from there."""
    save_every: int = 200
    """Steps between checkpoints."""
    sample_every: int | None = None
    """Steps between sample pictures; by default at each tenth of the budget."""
    sampler: str = "ddim:50"
    """How to sample at the end: ddim:50, ddpm:1000, heun:18, dpmpp_2m:20, ..."""
    seed: int = 0
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""


@dataclass(frozen=True)
class Preset:
    """What suits a data set on one kind of device."""

    minutes: float
    channels: tuple[int, ...]
    size: int | None = None
    batch: int = 32
    lr: float = 2e-3
    flip: bool = False


GROUPS = 8  # of every GroupNorm
PRESETS = {  # sized for two CPU cores
    "digits": Preset(minutes=2, channels=(32, 64), size=16, lr=3e-3),
    "mnist": Preset(minutes=5, channels=(32, 64, 128)),
    "fashion_mnist": Preset(minutes=5, channels=(32, 64, 128)),
    "cifar10": Preset(minutes=60, channels=(64, 128, 128), flip=True),
    "flowers102": Preset(minutes=60, channels=(32, 64, 128, 128), size=64, flip=True),
}
FOLDER = Preset(minutes=60, channels=(32, 64, 128, 128), size=64, flip=True)
GPU_PRESETS = {  # sized for one recent GPU
    "digits": Preset(minutes=1, channels=(32, 64), size=16, batch=128, lr=3e-3),
    "mnist": Preset(minutes=5, channels=(64, 128, 256), batch=256, lr=1e-3),
    "fashion_mnist": Preset(minutes=5, channels=(64, 128, 256), batch=256, lr=1e-3),
    "cifar10": Preset(minutes=120, channels=(128, 256, 256), batch=256, lr=5e-4, flip=True),
    "flowers102": Preset(minutes=120, channels=(128, 128, 256, 256), size=64, batch=64, lr=3e-4, flip=True),
}
GPU_FOLDER = Preset(minutes=120, channels=(128, 128, 256, 256), size=64, batch=64, lr=3e-4, flip=True)


def with_preset(args: Args) -> Args:
    """Fill what was left open from the preset of the data set, for this kind of device."""
    on_gpu = pick_device(args.device).startswith("cuda")
    preset = GPU_PRESETS.get(args.data, GPU_FOLDER) if on_gpu else PRESETS.get(args.data, FOLDER)
    open_flags = {f.name for f in fields(preset) if getattr(args, f.name) is None}
    if args.steps is not None:
        open_flags.discard("minutes")
    return replace(args, **{name: getattr(preset, name) for name in open_flags})


def new_run(args: Args) -> Args:
    """Settle every setting and write it down, so that --resume needs nothing but the folder."""
    positive(steps=args.steps, minutes=args.minutes, batch=args.batch, lr=args.lr, accumulate=args.accumulate,
             layers=args.layers, save_every=args.save_every, sample_every=args.sample_every)  # fmt: skip
    if args.steps is not None and args.minutes is not None:
        raise UserError("give the budget either as --steps or as --minutes, not both")
    if args.data == "auto":
        from common.data.load import auto

        name, why = auto(args.data_dir)
        print(why)
        args = replace(args, data=name)
    args = with_preset(args)
    folder = args.out or free_folder(Path("runs/01_ddpm_mnist") / Path(args.data).name)
    if (folder / "config.json").exists():
        raise UserError(f"{folder} already holds a run; continue it with --resume {folder}, or choose another --out")
    return replace(args, out=writable_folder(folder))


def resumed_run(args: Args) -> Args:
    """The settings of an earlier run, with this command's device, and its budget where one is given."""
    saved = read_json(args.resume / "config.json")
    if unknown := saved.keys() - {f.name for f in fields(Args)}:
        raise UserError(f"{args.resume / 'config.json'} has settings this program does not know: {', '.join(unknown)}")
    paths = {name: Path(saved[name]) for name in ("out", "data_dir")}
    old = Args(**saved | paths | {"out": args.resume, "channels": tuple(saved["channels"])})
    budget = {"steps": args.steps, "minutes": args.minutes} if args.steps or args.minutes else {}
    return replace(old, resume=args.resume, device=args.device, **budget)


def unet_config(args: Args, data):
    """Attention only at the lowest resolution: elsewhere it costs more than it gives."""
    from common.unet import UNetConfig

    halvings = 2 ** (len(args.channels) - 1)
    if data.size < 2 * halvings:
        raise UserError(f"{len(args.channels)} resolutions need images of at least {2 * halvings} pixels, not {data.size}")
    if args.class_conditional and data.labels is None:
        raise UserError(f"--class-conditional needs labels, and {args.data} has none")
    if any(c % GROUPS for c in args.channels):
        raise UserError(f"--channels must be multiples of {GROUPS}, not {args.channels}")
    return UNetConfig(
        size=data.size,
        in_channels=data.channels,
        out_channels=data.channels,
        channels=args.channels,
        attention=(False,) * (len(args.channels) - 1) + (True,),
        layers=args.layers,
        classes=len(data.classes) if args.class_conditional else None,
        scale_shift=True,
        groups=GROUPS,
    )


class Every:
    """When a sample picture is due: each `steps` steps, or at each tenth of the budget."""

    def __init__(self, steps: int | None):
        self.steps, self.tenth = steps, 0

    def due(self, state) -> bool:
        if self.steps is not None:
            return state.step % self.steps == 0
        before, self.tenth = self.tenth, int(10 * state.progress)
        return self.tenth > before


def main(args: Args) -> None:
    args = resumed_run(args) if args.resume else new_run(args)
    device = pick_device(args.device)

    import torch
    from accelerate import Accelerator

    from common import viz
    from common.checkpoint import Model, save_model
    from common.data import load
    from common.denoiser import Denoiser, diffusion_loss
    from common.diffusers_config import check_pair
    from common.runlog import logged
    from common.samplers import Sampler
    from common.schedule import make_schedule
    from common.training import Errors, TrainConfig, train
    from common.unet import UNet, zero_init

    check_pair(args.schedule, args.prediction)
    schedule, sampler = make_schedule(args.schedule), Sampler.parse(args.sampler)
    data = load(args.data, args.size, args.data_dir)
    torch.manual_seed(args.seed)
    net = zero_init(UNet(unet_config(args, data)))

    def loss(net, batch, draw) -> Errors:
        """The six steps of training: image, noise level, noise, noise the image in one shot, predict, compare."""
        x0 = batch["image"]                                                   # (B, C, H, W)
        u = draw.stratified(len(x0))                                          # (B,)
        eps = draw.randn(x0.shape)                                            # (B, C, H, W)
        if args.flip:
            x0 = torch.where(draw.rand(len(x0))[:, None, None, None] < 0.5, x0.flip(-1), x0)
        label = {"label": batch["label"]} if args.class_conditional else {}
        return Errors(diffusion_loss(net, schedule, args.prediction, x0, u, eps, **label), u)

    def sample(net, n: int, sampler: Sampler) -> list[torch.Tensor]:
        """Every moment of the reverse process, pure noise first. Each (n, C, H, W)."""
        label = {"label": torch.arange(n, device=accelerator.device) % len(data.classes)} if args.class_conditional else {}
        denoise, shape = Denoiser(net.eval(), args.prediction, **label), (n, data.channels, data.size, data.size)
        return sampler.frames(denoise, schedule, shape, args.seed, device=accelerator.device)

    cfg = TrainConfig(args.out, args.steps, args.minutes, args.batch, args.lr, accumulate=args.accumulate,
                      save_every=args.save_every, seed=args.seed)  # fmt: skip
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)
    accelerator = Accelerator(mixed_precision=pick_precision(args.precision, device), cpu=device == "cpu")
    main_process = accelerator.is_main_process
    if main_process and not args.resume:
        write_json(args.out / "config.json", asdict(args))

    states = train(net, data, loss, cfg, accelerator, resume=args.resume is not None)
    pictures = Every(args.sample_every)
    for state in logged(states, args.out, args.steps) if main_process else states:
        if not main_process:
            continue
        if state.saved:
            save_model(args.out / "model", Model(state.ema, schedule, args.prediction, clip_x0=True))
        if pictures.due(state):
            frames = sample(state.ema, 16, Sampler("ddim", 20))
            viz.save_picture(viz.grid(frames[-1], 8, 160), args.out / "samples" / f"step-{state.step:06d}.png")

    if main_process and state.progress < 1:
        print(f"stopped after step {state.step}; continue with: python 01_ddpm_mnist/train.py --resume {args.out}")
    elif main_process:
        frames = sample(state.ema, 64, sampler)
        made = [
            viz.save_picture(viz.grid(frames[-1], 8, 480), args.out / "samples.png"),
            viz.save_picture(viz.strip([f[:6] for f in frames], 10, 400), args.out / "strip.png"),
            viz.save_gif([f[:16] for f in frames], args.out / "process.gif"),
            viz.plot_run(args.out, args.out / "loss.png"),
        ]
        print(f"{state.step} steps, {state.images * state.step:,} images, {state.seconds:.0f} s of training")
        print("\n".join(f"{what:18} {path}" for what, path in zip(("generated images", "how they appeared", "the same, moving", "loss"), made, strict=True)))
        print(f"{'model':18} {args.out / 'model'}   more samples: python 01_ddpm_mnist/sample.py --model {args.out}")


if __name__ == "__main__":
    run(main, Args)
