"""Generate images with a trained model: the shipped one, a run of yours, or any diffusers folder.

  python 01_ddpm_mnist/sample.py --n 64
  python 01_ddpm_mnist/sample.py --model runs/01_ddpm_mnist/mnist --sampler ddpm:1000 --gif
"""

from dataclasses import dataclass
from pathlib import Path

from common.cli import pick_device, run
from common.errors import UserError

PRETRAINED = Path(__file__).parent / "pretrained"


@dataclass(frozen=True)
class Args:
    model: Path = PRETRAINED
    """A run folder, or any diffusers folder with an unconditional U-Net. By default the shipped MNIST model."""
    n: int = 64
    """How many images."""
    sampler: str = "dpmpp_2m:20"
    """dpmpp_2m:20, dpmpp_2s:10, ddim:50, ddim:50:eta=1, ddpm:1000, heun:18."""
    label: int | None = None
    """The class to draw, for a class-conditional model; by default all in turn."""
    size: int | None = None
    """Pixels a side; by default those the model was trained with."""
    seed: int = 0
    """The same seed gives the same images."""
    out: Path = Path("runs/01_ddpm_mnist/samples.png")
    """Where the grid goes."""
    strip: bool = False
    """Also draw, beside it, how the first images appeared: noise on the left, coarse steps first, fine steps at the end."""
    gif: bool = False
    """Also write an animated GIF of the reverse process beside it."""
    npy: bool = False
    """Also write the images as a .npy array beside it: uint8, (n, height, width, channels)."""
    batch_size: int = 64
    """Images at a time."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


def main(args: Args) -> None:
    device = pick_device(args.device)

    import time

    import numpy as np
    import torch

    from common import viz
    from common.diffusion.denoiser import Denoiser
    from common.diffusion.sampler_spec import Sampler
    from common.io.files import write_atomically
    from common.io.pixels import to_bytes
    from common.io.progress import with_progress
    from common.models.model_folder import load_model

    net, schedule, prediction, clip_x0 = load_model(args.model, device)
    sampler = Sampler.parse(args.sampler)
    size, classes = args.size or net.cfg.size, net.cfg.classes
    if net.cfg.text_dim:
        raise UserError(f"{args.model} is a text-to-image model; use 02_cfg_pokemon/sample.py for models of pixels, 04_latent_sd/sample.py for models of latents")
    if not size:
        raise UserError(f"{args.model} does not say how large its images are; give --size")
    if args.label is not None and not 0 <= args.label < (classes or 0):
        raise UserError(f"--label {args.label} does not exist: {args.model} has {f'the classes 0 to {classes - 1}' if classes else 'no classes'}")

    def sample(start: int, n: int) -> list[torch.Tensor]:
        """Images start ... start + n - 1: every moment of the reverse process, each (n, C, H, W)."""
        every = torch.arange(start, start + n) % classes if args.label is None and classes else torch.full((n,), args.label or 0)
        label = {"label": every.to(device)} if classes else {}
        denoise = Denoiser(net, prediction, clip_x0, **label)
        return sampler.frames(denoise, schedule, (n, net.cfg.in_channels, size, size), args.seed, start, device=device)

    began = time.perf_counter()
    frames = sample(0, min(args.batch_size, args.n))  # kept whole, for the GIF
    rest = [sample(start, min(args.batch_size, args.n - start))[-1] for start in with_progress("drawing", range(args.batch_size, args.n, args.batch_size), unit="batch")]
    images = torch.cat([frames[-1], *rest])
    print(f"{args.n} images with {args.sampler} in {time.perf_counter() - began:.1f} s on {device}")

    print(viz.save_picture(viz.grid(images, height=480), args.out))
    beside = args.out.with_suffix("").as_posix()
    if args.strip:
        print(viz.save_picture(viz.strip([frame[:6] for frame in frames], height=400), Path(f"{beside}_strip.png")))
    if args.gif:
        print(viz.save_gif([frame[:16] for frame in frames], Path(f"{beside}.gif"), columns=8, height=120))
    if args.npy:
        pixels = to_bytes(images).permute(0, 2, 3, 1).numpy()
        path = Path(f"{beside}.npy")
        write_atomically(path, lambda file: np.save(file, pixels))
        print(path)


if __name__ == "__main__":
    run(main, Args)
