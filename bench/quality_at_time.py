"""Quality at equal wall-clock: chapter 1's train.py against denoising_diffusion_pytorch, judged by one evaluator.

  python -m bench.quality_at_time --data-dir path/to/data --minutes 5
  python -m bench.quality_at_time --data-dir path/to/data --minutes 5 10 20

Both train on the same images for the same minutes on the same cores, one after the other, and 500 samples of each are
compared with the test images by common/evaluate/evaluator.py. Ours is the command a learner types, all defaults. Theirs is its
README's model and loss, GaussianDiffusion(Unet(dim=32)), trained as its Trainer does, and wherever there is a choice it
gets the better one, by the Frechet distance: of two learning rates (1e-4 is its default), of averaged and raw weights.

- Its U-Net halves three times, so it sees the images padded from 28 to 32 pixels; its samples are cropped back.
- Its Trainer has no limit in minutes, so its loop is written out in `train_theirs`, without its overhead: the images are in
  memory, nothing is logged or saved, and only training counts, neither imports nor sampling. Digits are not mirrored.
- It trains in the precision that train.py picks (bf16 where the processor computes it natively, as Trainer(amp=True) can).
- Its learning rate is constant, so one run, photographed at 5, 10 and 20 minutes, serves all budgets. Ours follows the
  budget and is trained anew for each.

Samples are kept in the --out folder, and a bench that was interrupted goes on with what is missing.
"""

import os
import shutil
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

from bench.harness import command, report
from common.cli import pick_precision, run, writable_folder
from common.errors import UserError

TARGET = "target: theirs / ours at least 4 after 5 minutes"


@dataclass(frozen=True)
class Args:
    minutes: tuple[float, ...] = (5.0,)
    """Budgets of training."""
    data: str = "mnist"
    """mnist or fashion_mnist."""
    data_dir: Path = Path("data")
    """Where local copies are looked for, and where downloads go."""
    n: int = 500
    """Samples of each."""
    lrs: tuple[float, ...] = (1e-4, 1e-3)
    """Learning rates for theirs."""
    weights: tuple[Literal["averaged", "raw"], ...] = ("averaged", "raw")
    """Which of its weights to sample; that takes longer than training them."""
    sampling_steps: int = 50
    """Steps of its own DDIM sampler. Ours takes its default, dpmpp_2m:20."""
    precision: Literal["auto", "no", "bf16"] = "auto"
    """Of both; auto is what train.py picks."""
    only: Literal["ours", "theirs", "both"] = "both"
    """Train and judge only one of them."""
    seed: int = 0
    out: Path = Path("runs/bench/quality_at_time")
    """Where samples and grids go."""
    json: Path | None = None
    """Also write the figures to this file."""


def main(args: Args) -> None:
    writable_folder(args.out)
    os.environ.setdefault("TQDM_MININTERVAL", "10")  # its sampler draws a progress bar for every batch

    import torch

    from common import viz
    from common.data import load
    from common.evaluate.evaluator import evaluate
    from common.evaluate.samples import read_npy

    train, test = (load(args.data, data_dir=args.data_dir, split=split) for split in ("train", "test"))
    if (train.channels, train.size) != (1, 28):
        raise UserError(f"this bench takes mnist or fashion_mnist (28 pixels, one channel), not {args.data}")

    files = ours(args) if args.only != "theirs" else {}
    files |= theirs(args, train) if args.only != "ours" else {}
    reports = {}
    for name, path in files.items():
        samples = read_npy(path)
        reports[name] = evaluate(samples, test, train, args.seed)
        viz.save_picture(viz.grid(samples[:64], 8, 480), path.with_suffix(".png"))

    figures = {"cores used": torch.get_num_threads(), "precision": pick_precision(args.precision, "cpu"), "samples": args.n}
    for minutes in args.minutes:
        figures |= compare(minutes, {name: r for (name, m), r in reports.items() if m == minutes})
    report(f"Frechet distance on {args.data} after equal training time ({TARGET})", figures, args.json)
    print(f"grids of 64 samples beside the samples in {args.out}")


def compare(minutes: float, reports: dict) -> dict[str, object]:
    """The rows of one budget."""
    rows = {f"{minutes:g} min: {name}": (r.frechet, r.frechet_sd) for name, r in reports.items()}
    floor = next(iter(reports.values()))
    rows[f"{minutes:g} min: real images (the floor)"] = (floor.frechet_real, floor.frechet_real_sd)
    rivals = {name: r.frechet for name, r in reports.items() if name != "ours"}
    if "ours" in reports and rivals:
        best = min(rivals, key=rivals.get)
        rows[f"{minutes:g} min: {best} / ours"] = rivals[best] / reports["ours"].frechet
    return rows


def sample_file(args: Args, name: str, minutes: float) -> Path:
    """Everything that the samples depend on is in the name, so that nothing stale is taken for them."""
    precision = pick_precision(args.precision, "cpu")
    return args.out / f"{args.data}-{minutes:g}min-{name.replace(' ', '-')}-{precision}-seed{args.seed}-n{args.n}.npy"


# ----------------------------------------------------------------------------------------------------------------- ours


def ours(args: Args) -> dict[tuple[str, float], Path]:
    """{("ours", minutes): file of samples}, by the commands that a learner types."""
    files = {("ours", minutes): sample_file(args, "ours", minutes) for minutes in args.minutes}
    for (_, minutes), path in files.items():
        if path.exists():
            continue
        folder = path.with_suffix("").resolve()
        shutil.rmtree(folder, ignore_errors=True)  # of an interrupted bench
        print(f"train.py for {minutes:g} minutes", flush=True)
        command("01_ddpm_mnist/train.py", "--data", args.data, "--data-dir", args.data_dir.resolve(), "--minutes", minutes,
                "--precision", args.precision, "--seed", args.seed, "--device", "cpu", "--out", folder)  # fmt: skip
        command("01_ddpm_mnist/sample.py", "--model", folder, "--n", args.n, "--seed", args.seed, "--device", "cpu",
                "--npy", "--out", folder / "drawn.png")  # fmt: skip
        (folder / "drawn.npy").rename(path)
    return files


# --------------------------------------------------------------------------------------------------------------- theirs


def theirs(args: Args, data) -> dict[tuple[str, float], Path]:
    """{(name, minutes): file of samples} for every learning rate, averaged and raw weights. All is trained before any is sampled."""
    for lr in args.lrs:
        if not all(weights_file(args, lr, minutes).exists() for minutes in args.minutes):
            print(f"denoising_diffusion_pytorch at {lr:g} for {max(args.minutes):g} minutes", flush=True)
            train_theirs(args, data, lr)
    files = {}
    for weights, minutes, lr in product(args.weights, args.minutes, args.lrs):
        path = sample_file(args, f"ddp lr{lr:g} {weights} ddim{args.sampling_steps}", minutes)
        if not path.exists():
            print(f"samples of its {weights} weights after {minutes:g} minutes at {lr:g}", flush=True)
            save_samples(weights_file(args, lr, minutes), weights, path, args)
        files[f"denoising_diffusion_pytorch, lr {lr:g}, {weights}", minutes] = path
    return files


def weights_file(args: Args, lr: float, minutes: float) -> Path:
    return sample_file(args, f"ddp lr{lr:g} weights", minutes).with_suffix(".pt")


def new_theirs(args: Args):
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet

    return GaussianDiffusion(Unet(dim=32, channels=1), image_size=32, sampling_timesteps=args.sampling_steps)


def train_theirs(args: Args, data, lr: float) -> None:
    """Train as its Trainer does; at each budget, put the weights away."""
    import torch
    import torch.nn.functional as F
    from ema_pytorch import EMA
    from tqdm import tqdm

    from common.io.files import write_atomically

    torch.manual_seed(args.seed)
    images = F.pad(data.pixels, (2, 2, 2, 2))  # (N, 1, 32, 32) bytes; the padding is black, as the border of every digit
    diffusion = new_theirs(args)
    optimizer = torch.optim.Adam(diffusion.parameters(), lr, betas=(0.9, 0.99))
    ema = EMA(diffusion, beta=0.995, update_every=10)
    bf16, seconds, budgets = pick_precision(args.precision, "cpu") == "bf16", 0.0, sorted(args.minutes)
    with tqdm(unit="step") as bar:
        while budgets:
            for indices in torch.randperm(len(images)).split(16):
                began = time.monotonic()
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    loss = diffusion(images[indices].float() / 255)  # it brings [0, 1] to [-1, 1] itself
                loss.backward()
                torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                ema.update()
                seconds += time.monotonic() - began
                bar.update()
                if seconds >= 60 * budgets[0]:
                    both = {"averaged": ema.ema_model.state_dict(), "raw": diffusion.state_dict()}
                    write_atomically(weights_file(args, lr, budgets.pop(0)), lambda file, both=both: torch.save(both, file))
                    if not budgets:
                        return


def save_samples(source: Path, weights: str, path: Path, args: Args) -> None:
    """n samples by its own DDIM, cropped from 32 to 28 pixels, as bytes (n, 28, 28, 1)."""
    import numpy as np
    import torch

    from common.io.files import write_atomically

    diffusion = new_theirs(args)
    diffusion.load_state_dict(torch.load(source, weights_only=True)[weights])
    diffusion.eval()
    with torch.random.fork_rng():
        torch.manual_seed(args.seed)
        batches = [diffusion.sample(min(50, args.n - start)) for start in range(0, args.n, 50)]  # each (b, 1, 32, 32) in [0, 1]
    images = torch.cat(batches)[:, :, 2:-2, 2:-2].clamp(0, 1)
    pixels = (255 * images).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    write_atomically(path, lambda file: np.save(file, pixels))


if __name__ == "__main__":
    run(main, Args)
