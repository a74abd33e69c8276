"""The package denoising_diffusion_pytorch: a folder of images, one training step by hand,
and the package's Trainer made exact.
"""

import hashlib
import os
import re
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from itertools import count
from pathlib import Path

import torch
import torch.nn.functional as F
from denoising_diffusion_pytorch import GaussianDiffusion, Unet
from denoising_diffusion_pytorch import Trainer as PackageTrainer
from denoising_diffusion_pytorch.denoising_diffusion_pytorch import Dataset
from torch import Tensor
from torch.utils.data import DataLoader

from common.cli import pick_device
from common.data import Images, load
from common.data.image_export import export
from common.data.sources.decoding import decode_all
from common.data.sources.listing import Listing, Tally, list_folder
from common.data.sources.workers import PATIENCE, as_arrays, as_tensors, leave_signals, started
from common.errors import UserError, enough_memory, explain
from common.io.files import write_json
from common.io.state_dict import count_parameters, fingerprint
from common.random import AUGMENTATION, EVALUATION, SAMPLING, TRAINING, batch_indices, generator
from common.training.budget import Budget
from common.training.record import check_record, keep_settings
from common.viz import grid, save_picture, words
from finetune_diffusers.training.flags import PackageFlags
from finetune_diffusers.training.loop.memory_usage import Cost, total

LEAST_IMAGES = 100  # below this the package's Trainer refuses to work
SUFFIXES = ("jpg", "jpeg", "png", "tiff")  # of the files that it sees, written like that
LOWER = "--batch-size (raise --gradient-accumulation as much), --size, --dim or --samples"


def open_folder(args: PackageFlags) -> Path:
    """The folder of images that the Trainer will read. A data set is written into the run's folder, once; so is a
    folder in which the Trainer would not see what the course sees:
    other kinds of files, hidden files, links, suffixes in capitals.
    """
    given, folder = Path(args.data), args.run_dir / "images"
    listing = list_folder(given) if given.is_dir() and given.suffix != ".lmdb" else None
    if listing and listing.pictures and set(seen_by_package(given)) == set(listing.paths(listing.pictures)):
        folder = given
    else:
        if not args.resume:
            shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed before its first step
        if not folder.exists():
            images = open_images(args, listing)
            check_number(len(images), given)
            export(images, folder)
            print(f"{len(images):,} images of {args.data} written to {folder}")
    check_number(len(seen_by_package(folder)), folder)
    return folder


def open_images(args: PackageFlags, listing: Listing | None) -> Images:
    """All pictures of a folder, as the package takes them where it reads one itself;
    of any other set, its training split.
    """
    if not listing or not listing.pictures:
        return load(args.data, args.size, args.data_dir, n=args.n, channels=3)
    tally, name = Tally(), Path(args.data).name
    pixels, kept = decode_all(listing.paths(listing.pictures), args.size, channels=3, tally=tally)
    tally.left_out += listing.holds(listing.pictures)
    tally.tell(name, len(kept))
    return Images(name, pixels).first(min(args.n or len(kept), len(kept)))


def seen_by_package(folder: Path) -> list[Path]:
    """The files that the package's Dataset takes."""
    return sorted(path for suffix in SUFFIXES for path in folder.glob(f"**/*.{suffix}"))


def check_number(n: int, where: Path) -> None:
    """Refuse fewer images than the package does."""
    if n < LEAST_IMAGES:
        raise UserError(
            f"the package's Trainer needs at least {LEAST_IMAGES} images (10,000 are better), and {where} holds {n}; give more images"
        )


def make_diffusion(args: PackageFlags) -> GaussianDiffusion:
    """The package's network inside its diffusion process, with random weights."""
    torch.manual_seed(args.seed)
    return GaussianDiffusion(
        Unet(dim=args.dim, dim_mults=args.mults, channels=3),
        image_size=args.size,
        timesteps=1000,
        sampling_timesteps=args.sample_steps,
        objective=args.objective,
        beta_schedule=args.schedule,
    )


# ------------------------------------------------------------------------------------------------------------- by hand


STEPS = (  # of `step_by_hand`, each as wide as the others of its language
    ("scaled to [-1, 1]           ", "缩放到 [-1, 1]            "),
    ("a timestep for each image   ", "每张图像一个时间步        "),
    ("noise                       ", "噪声                      "),
    ("x = alpha x0 + sigma eps    ", "x = alpha x0 + sigma eps  "),
    ("prediction of the network   ", "网络的预测                "),
    ("squared error               ", "平方误差                  "),
)


@torch.no_grad()
def step_by_hand(diffusion: GaussianDiffusion, folder: Path, seed: int) -> float:
    """What diffusion(images) does when it is called, line by line, printed in the language of viz.label_language.
    Returns the loss, which is the package's own.
    """
    size, objective = diffusion.image_size[0], diffusion.objective
    # (B, 3, S, S) in [0, 1]
    images = torch.stack([Dataset(folder, size, convert_image_to="RGB")[i] for i in range(8)])
    draw = generator(EVALUATION, seed)
    n, shape, low, high = len(images), tuple(images.shape), float(images.min()), float(images.max())
    english = f"\none step by hand: {n} images, {shape}, from {low:.2f} to {high:.2f}"
    print(words(english, f"\n手算一步：{n} 张图像，形状 {shape}，值从 {low:.2f} 到 {high:.2f}"))
    lines = [f"  {k}  {words(*step)}" for k, step in enumerate(STEPS, 1)]
    mean, std = words("mean", "平均"), words("standard deviation", "标准差")
    x0 = 2 * images - 1
    print(f"{lines[0]}{mean} {x0.mean():+.3f}")
    t = torch.randint(1000, (len(x0),), generator=draw)  # (B,)
    print(f"{lines[1]}t = {' '.join(map(str, t.tolist()))}")
    eps = torch.randn(x0.shape, generator=draw)
    print(f"{lines[2]}{std} {eps.std():.3f}")
    alpha, sigma = (
        table[t].view(-1, 1, 1, 1)
        for table in (diffusion.sqrt_alphas_cumprod, diffusion.sqrt_one_minus_alphas_cumprod)
    )
    x = alpha * x0 + sigma * eps
    print(f"{lines[3]}alpha = {' '.join(f'{a:.2f}' for a in alpha.flatten())}")
    prediction = diffusion.model(x, t)
    target = {"pred_noise": eps, "pred_x0": x0, "pred_v": alpha * eps - sigma * x0}[objective]
    kind, found, wanted = objective[5:], float(prediction.std()), float(target.std())
    english = f"{kind}, {std} {found:.3f}; that of the target is {wanted:.3f}"
    print(lines[4] + words(english, f"{kind}，{std} {found:.3f}；目标的标准差 {wanted:.3f}"))
    per_sample = F.mse_loss(prediction, target, reduction="none").flatten(1).mean(1) * diffusion.loss_weight[t]  # (B,)
    print(f"{lines[5]}{' '.join(f'{e:.2f}' for e in per_sample)}")
    ours, theirs = float(per_sample.mean()), float(diffusion.p_losses(x0, t, noise=eps))
    english = f"their mean is {ours:.6f}; diffusion.p_losses(x0, t, noise=eps) says {theirs:.6f}\n"
    print(words(english, f"平均为 {ours:.6f}；diffusion.p_losses(x0, t, noise=eps) 算出 {theirs:.6f}\n"))
    return ours


# --------------------------------------------------------------------------------------------------------- the Trainer


def train_with_package(args: PackageFlags) -> None:
    """Show one step by hand, let the package train, and show what its averaged network draws. args: settled"""
    pick_device(args.device)
    if args.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "1"  # the Trainer has no flag for it
    folder, diffusion = open_folder(args), make_diffusion(args)
    if not args.resume:
        step_by_hand(diffusion, folder, args.seed)
    if args.by_hand_only:
        return
    record = record_of_folder(folder)
    check_record(args, record)
    keep_settings(args, record)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    half = args.amp == "yes" or (args.amp == "auto" and torch.cuda.is_available() and args.device != "cpu")
    trainer = ExactTrainer(
        diffusion,
        str(folder),
        train_batch_size=args.batch_size,
        gradient_accumulate_every=args.gradient_accumulation,
        augment_horizontal_flip=args.flip,
        train_lr=args.lr,
        train_num_steps=args.steps,
        ema_decay=args.ema,
        save_and_sample_every=args.save_every,
        num_samples=args.samples,
        results_folder=str(args.out),
        amp=half,
        calculate_fid=False,  # which would download a network
    )
    first = load_milestone(trainer, args.out) if args.resume else 0
    weights = count_parameters(diffusion)
    cost, began = Cost(trained=weights, weights=weights), time.perf_counter()
    print(
        f"{len(trainer.ds):,} images of {args.size}x{args.size}; {weights:,} weights; {args.batch_size * args.gradient_accumulation} images "
        f"per step; half precision {'on' if half else 'off'}; steps {first} to {args.steps} on {trainer.device}"
    )
    with enough_memory(str(trainer.device), LOWER):
        try:
            # the package's loop cannot be interrupted, so the samples at its milestones are watched as well
            with cost.watching(0, trainer.device):
                trainer.train_to(args.steps, args.seed)
        finally:
            trainer.accelerator.end_training()  # a process that ends while its group still listens may abort instead
        if not all(bool(p.isfinite().all()) for p in diffusion.parameters()):
            raise UserError(
                f"the weights are no longer numbers: the training has diverged; begin again with a smaller --lr (it was {args.lr:g})"
            )
        if trainer.step < args.steps:
            print(
                f"stopped after step {trainer.step}; continue with: python 05_finetune_diffusers/ddpm_package.py --resume {args.out}"
            )
            return
        # the gradients are gone by now; there was one for each weight
        cost.gradient_bytes = total(p for p in trainer.model.parameters() if p.requires_grad)
        cost.count(trainer.model.parameters(), trainer.opt.optimizer, trainer.ema.ema_model.parameters())
        print(f"\nmemory\n{cost.table()}\n")
        times = {"seconds": time.perf_counter() - began, "steps": args.steps - first}
        write_json(args.run_dir / "results.json", {"cost": asdict(cost)} | times)
        torch.manual_seed(generator(SAMPLING, args.seed).initial_seed())
        images = trainer.ema.ema_model.sample(batch_size=args.samples)  # (N, 3, S, S) in [0, 1]
    print(save_picture(grid(images.cpu() * 2 - 1, round(args.samples**0.5), 384), args.out / "samples.png"))


class Stopped(Exception):
    """The package's loop is left between two steps."""


class ExactTrainer(PackageTrainer):
    """The package's Trainer, whose random numbers in step k are a function of (seed, k), as in
    common/training/loop.py.

    The Trainer shuffles, mirrors and adds noise with the global generator, which no milestone holds. Here its loader
    seeds that generator for every batch, so a run resumed at a milestone ends with the same weights
    as one that never stopped.
    """

    def train_to(self, steps: int, seed: int) -> None:
        """Train up to this step, or until a signal asks for the end; the weights are saved in both cases."""
        self.train_num_steps = steps
        budget = Budget(steps, None, 0.0, self.accelerator)
        self.dl = self.batches(seed, budget)
        with budget.stop_on_signals(), suppress(Stopped):
            self.train()
        if self.step % self.save_and_sample_every:
            self.save(self.step // self.save_and_sample_every + 1)  # the last, shorter stretch

    def batches(self, seed: int, budget: Budget) -> Iterator[Tensor]:
        """(B, 3, H, W) in [0, 1]: the images of one batch after the other, of this process.
        Every epoch has a new order.
        """
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        parts = self.gradient_accumulate_every
        first = self.step * parts
        orders = ((k, batch_indices(len(self.ds), self.batch_size, k, seed).chunk(world)[rank]) for k in count(first))
        plan = ([(k, i) for i in indices.tolist()] for k, indices in orders)
        # on a CPU they would take it from the training
        workers = min(4, os.cpu_count() or 1) if self.device.type == "cuda" else 0
        loader = DataLoader(
            Mirrored(self.ds, seed),
            batch_sampler=plan,
            num_workers=workers,
            collate_fn=as_arrays,
            worker_init_fn=leave_signals,
            generator=torch.Generator(),
            timeout=PATIENCE if workers else 0,
        )
        for k, images in enumerate(started(loader, "--device cpu"), first):
            if k % parts == 0:
                budget.update()
                if budget.interrupted:
                    raise Stopped
            torch.manual_seed(generator(TRAINING, seed, k, rank).initial_seed())
            yield as_tensors(images)

    def save(self, milestone: int) -> None:
        """Save as the package does, but the whole file or nothing."""
        run, name = self.results_folder, f"model-{milestone}.pt"
        self.results_folder = run / "milestone.partial"
        try:
            self.results_folder.mkdir(exist_ok=True)
            super().save(milestone)
            if self.accelerator.is_main_process:
                os.replace(self.results_folder / name, run / name)
        finally:
            shutil.rmtree(self.results_folder, ignore_errors=True)
            self.results_folder = run


class Mirrored(torch.utils.data.Dataset):
    """The package's images; whether image i of batch k is mirrored depends on (seed, k, i) alone."""

    def __init__(self, images: Dataset, seed: int):
        self.images, self.seed = images, seed
        images.paths.sort()  # the order in which a file system lists them may be another after a move

    def __getitem__(self, place: tuple[int, int]) -> Tensor:
        torch.manual_seed(generator(AUGMENTATION, self.seed, *place).initial_seed())
        return self.images[place[1]]


def record_of_folder(folder: Path) -> dict[str, object]:
    """For data.json: the files that the Trainer sees."""
    paths = seen_by_package(folder)
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    return {"images": len(paths), "fingerprint": fingerprint(digests)}


def milestones(run: Path) -> list[int]:
    """Numbers of the model-N.pt of a run, oldest first."""
    names = [re.fullmatch(r"model-(\d+)\.pt", path.name) for path in run.glob("model-*.pt")]
    return sorted(int(name[1]) for name in names if name)


def load_milestone(trainer: ExactTrainer, run: Path) -> int:
    """Load the newest milestone, if there is one; returns the step it was left at."""
    kept = milestones(run)
    if not kept:
        return 0
    try:
        trainer.load(kept[-1])
    except Exception as problem:  # torch raises RuntimeError, EOFError, UnpicklingError and more for damaged files
        hint = f"delete it to go on from model-{kept[-2]}.pt" if len(kept) > 1 else "there is no earlier one"
        raise UserError(f"{run / f'model-{kept[-1]}.pt'} cannot be loaded ({explain(problem)}); {hint}") from problem
    return trainer.step
