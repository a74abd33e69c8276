"""How good are generated images? One honest evaluator for small pictures.

  python -m common.evaluate runs/01_ddpm_mnist/mnist --data mnist --n 500      a model: it is sampled first
  python -m common.evaluate my_samples/ --data mnist                           a folder of PNGs
  python -m common.evaluate my_samples.npy --data mnist                        uint8, or floats in [-1, 1]

It prints the Frechet and the kernel distance between samples and real images, each beside its floor: what as many real
images would get. (A model that copied its training images would get it too: look at the pictures as well.)
The features are those of our own small classifier of digits, so no number here compares with an Inception FID.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tyro.conf import Positional

from common.cli import pick_device
from common.errors import UserError, explain

if TYPE_CHECKING:  # torch waits until it is needed
    from torch import Tensor

    from common.data import Images

MODEL_SAMPLES = 500  # drawn from a model where --n does not say
MIN_SAMPLES = 32     # below this a covariance of 64 features means nothing
DRAWS = 20           # of real images, for the floor


@dataclass(frozen=True)
class Args:
    samples: Positional[Path]
    """A folder of PNGs, a .npy array (N, H, W, C) or (N, C, H, W), or a model folder."""
    data: str = "auto"
    """What the samples should look like: auto, digits, mnist, fashion_mnist, cifar10, flowers102, or a folder of images."""
    data_dir: Path = Path("data")
    """Where local copies are looked for, and where downloads go."""
    n: int | None = None
    """How many samples; by default all there are, or 500 from a model. Distances compare at equal numbers only."""
    sampler: str = "dpmpp_2m:20"
    """How to sample from a model: dpmpp_2m:20, ddim:50, ddpm:1000, heun:18, ..."""
    seed: int = 0
    """The same seed gives the same numbers."""
    json: Path | None = None
    """Also write the numbers to this file."""
    device: str = "auto"
    """Where a model is sampled: auto, cpu, cuda, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


# --------------------------------------------------------------------------------------------------------- the numbers


class Report(NamedTuple):
    """What `evaluate` found. `real` always means as many real images as there are samples, compared with the same reference."""

    n: int                                  # samples
    reference: int                          # real images they are compared with
    frechet: float                          # Frechet distance of the samples
    frechet_sd: float                       # its bootstrap standard deviation
    frechet_interval: tuple[float, float]   # its bootstrap interval, 95 %
    frechet_real: float                     # the floor: mean over several draws of real images
    frechet_real_sd: float                  # standard deviation between those draws
    kid: float                              # kernel distance of the samples
    kid_sd: float                           # standard deviation over subsets
    kid_real: float                         # its floor, which is about zero
    kid_real_sd: float
    histogram: tuple[float, ...]            # share of the samples that the classifier takes for 0, 1, ..., 9
    histogram_real: tuple[float, ...]
    confidence: float                       # mean probability of the class it takes them for
    confidence_real: float
    confidence_noise: float                 # the same for pure noise
    notes: tuple[str, ...]                  # what a reader of these numbers must know

    @property
    def ratio(self) -> float:
        """Frechet distance in units of the floor; 1 is as good as real by this measure."""
        return self.frechet / self.frechet_real


def evaluate(samples: Tensor, reference: Images, real: Images, seed: int = 0) -> Report:
    """Compare samples with real images.

    samples    (N, 1 or 3, S, S) floats in [-1, 1]; compared as the bytes they would be saved as
    reference  real images that the model has not seen: the test split
    real       further real images, for the floor: the training split

    Both sets are first brought to the samples' size, as a model's training images were. Where `real` is too small for two
    disjoint draws of N images, fewer samples are used, and the notes say so. Raises UserError for what cannot be compared.
    """
    n, notes = check(samples, reference, real)
    return Evaluator(reference, real, samples.shape[-1], n, seed)(samples, tuple(notes))


class Evaluator:
    """`evaluate` for many sets of n samples: what they are compared with is looked at only once.

    evaluator = Evaluator(reference, real, size, n); evaluator(samples) -> Report, where samples is (N, 1 or 3, size, size). Of more than n,
    n are chosen: distances compare at equal numbers only.
    """

    def __init__(self, reference: Images, real: Images, size: int, n: int, seed: int = 0):
        import torch

        from common.data import Images
        from common.evaluate.digit_classifier import load_classifier, look
        from common.evaluate.distances import Frechet, deal, kernel_distance, one_thread
        from common.random import EVALUATION, generator

        self.n, self.seed, self.net = n, seed, load_classifier()
        self.features_reference, _ = look(self.net, reference.resized(size).pixels)
        chosen = Images(real.name, choose(real.pixels, DRAWS * n, seed)).resized(size).pixels
        features_real, self.classes_real = look(self.net, chosen)
        noise = torch.randn((n, 1, size, size), generator=generator(EVALUATION, seed, 2)).clamp(-1, 1)
        _, self.classes_noise = look(self.net, noise)
        with one_thread():
            self.frechet = Frechet(self.features_reference)
            hands = list(deal(features_real, n, DRAWS, seed))
            self.frechet_real = torch.tensor([self.frechet(hand) for hand in hands])
            self.kid_real = torch.tensor([kernel_distance(hand, self.features_reference, seed)[0] for hand in hands])

    def __call__(self, samples: Tensor, notes: tuple[str, ...] = ()) -> Report:
        from common.evaluate.digit_classifier import look
        from common.evaluate.distances import bootstrap, kernel_distance, one_thread
        from common.io.pixels import to_bytes

        if len(samples) > self.n:
            samples = choose(samples, self.n, self.seed)
        features, classes = look(self.net, to_bytes(samples))
        with one_thread():
            estimate = bootstrap(self.frechet, features, self.seed)
            kid, kid_sd = kernel_distance(features, self.features_reference, self.seed)
        return Report(
            self.n, len(self.features_reference),
            estimate.value, estimate.sd, (estimate.low, estimate.high), float(self.frechet_real.mean()), float(self.frechet_real.std()),
            kid, kid_sd, float(self.kid_real.mean()), float(self.kid_real.std()),
            histogram(classes), histogram(self.classes_real),
            confidence(classes), confidence(self.classes_real), confidence(self.classes_noise), notes,
        )  # fmt: skip


def check(samples: Tensor, reference: Images, real: Images) -> tuple[int, list[str]]:
    """How many samples can be compared, and the notes."""
    from common.evaluate.digit_classifier import FEATURES

    if samples.ndim != 4 or samples.shape[1] not in (1, 3) or samples.shape[2] != samples.shape[3]:
        raise UserError(f"samples must be square grey or RGB images, (N, 1 or 3, S, S), not {tuple(samples.shape)}")
    if not samples.isfinite().all():
        raise UserError("the samples hold values that are not finite (NaN or infinity), so they are no images")
    n, notes = min(len(samples), len(real) // 2), []
    if min(n, len(reference)) < MIN_SAMPLES:
        raise UserError(f"{len(samples)} samples, {len(reference)} reference and {len(real)} other real images are too few to "
                        f"compare; at least {MIN_SAMPLES}, {MIN_SAMPLES} and {2 * MIN_SAMPLES} are needed, and 500 samples are a good number")  # fmt: skip
    if n < len(samples):
        notes.append(f"only {n} of the {len(samples)} samples are used: {real.name} has just {len(real)} images for the floor")
    if min(n, len(reference)) <= FEATURES:
        notes.append(f"{min(n, len(reference))} images cannot fill {FEATURES} features: the distances are very rough")
    if reference.name != "mnist":
        notes.append(f"the features are those of a classifier of MNIST digits: with {reference.name}, use them to compare models, no more")
    return n, notes


def choose(images: Tensor, n: int, seed: int) -> Tensor:
    """n of the images at random (or all there are): files are often sorted, by class or by writer. (n, C, H, W)"""
    import torch

    from common.random import EVALUATION, generator

    return images[torch.randperm(len(images), generator=generator(EVALUATION, seed, 1))[:n]]


def histogram(classes: Tensor) -> tuple[float, ...]:
    """(N, 10) probabilities -> share of each most probable class."""
    return tuple((classes.argmax(1).bincount(minlength=classes.shape[1]).cpu().double() / len(classes)).tolist())


def confidence(classes: Tensor) -> float:
    return float(classes.max(1).values.mean())


# --------------------------------------------------------------------------------------------------------- the samples


def read_samples(source: Path, n: int | None, sampler: str, seed: int, device: str) -> Tensor:
    """Samples from a folder of images, a .npy file, or a model. (N, C, S, S) floats in [-1, 1]"""
    if source.is_dir() and any((source / part).exists() for part in ("unet", "model", "model_index.json", "config.json")):
        return sample_model(source, n or MODEL_SAMPLES, sampler, seed, device)
    images = read_folder(source) if source.is_dir() else read_npy(source)
    if n is None or n == len(images):
        return images
    if n > len(images):
        raise UserError(f"{source} holds {len(images)} images, fewer than --n {n}")
    return choose(images, n, seed)


def read_folder(folder: Path) -> Tensor:
    """All images below the folder, which must be of one size."""
    from common.data.sources.decoding import Unreadable, decode_all, opened
    from common.data.sources.listing import Tally, list_folder
    from common.io.pixels import to_float

    listing, tally = list_folder(folder), Tally()
    names = listing.pictures
    if not names:
        raise UserError(f"{folder} holds neither images nor a model; give a folder of PNGs, a .npy or .npz file, or a model folder")
    sizes: dict[tuple[int, int], str] = {}
    for name in names:
        with suppress(Unreadable), opened(folder / name) as image:  # decode_all names the unreadable ones
            sizes.setdefault(image.size, name)
    if len(sizes) > 1:
        (a, first), (b, second) = list(sizes.items())[:2]
        raise UserError(f"{folder / first} is {a[0]}x{a[1]} but {folder / second} is {b[0]}x{b[1]} pixels; the samples must all be of one size")
    width, height = next(iter(sizes), (28, 28))
    if width != height:
        raise UserError(f"{folder / names[0]} is {width}x{height} pixels; the samples must be square")
    pixels, kept = decode_all(listing.paths(names), width, tally=tally)
    tally.left_out += listing.holds(names)
    tally.tell(str(folder), len(kept))
    return to_float(pixels)


def read_npy(path: Path) -> Tensor:
    """uint8, or floats in [-1, 1]; (N, H, W, C) or (N, C, H, W), in a .npy, or an .npz as other programs save samples."""
    import numpy as np

    from common.data.sources.arrays import read_npz

    if path.suffix == ".npz":
        array = next(iter(read_npz(path).values())).images
        array = array[..., None] if array.ndim == 3 else array
        return from_array(path, array)
    if path.suffix != ".npy":
        raise UserError(f"the name {path} does not end in .npy or .npz; SAMPLES takes a folder of PNGs, a .npy or .npz file, or a model folder")
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as problem:
        raise UserError(f"{path} cannot be read as an array ({explain(problem)})") from problem
    return from_array(path, array)


def from_array(path: Path, array) -> Tensor:
    """(N, C, H, W) floats in [-1, 1] from the samples in an array."""
    import numpy as np
    import torch

    from common.io.pixels import to_float

    if array.ndim == 4 and array.shape[3] in (1, 3) and array.shape[1] == array.shape[2]:
        array = array.transpose(0, 3, 1, 2)
    if array.ndim != 4 or array.shape[1] not in (1, 3):
        raise UserError(f"{path} has the shape {array.shape}; expected (N, H, W, C) or (N, C, H, W), where C is 1 or 3")
    if array.dtype == np.uint8:
        return to_float(torch.from_numpy(np.ascontiguousarray(array)))
    if array.dtype.kind != "f":
        raise UserError(f"{path} holds {array.dtype}; expected uint8 (0 to 255) or floats in [-1, 1]")
    if not array.size:
        raise UserError(f"{path} holds no images: its shape is {array.shape}")
    low, high = float(array.min()), float(array.max())
    if low < -1.01 or high > 1.01:
        raise UserError(f"the floats in {path} run from {low:.3g} to {high:.3g}; expected [-1, 1], where -1 is black and 1 is white")
    if low >= 0:
        raise UserError(f"the floats in {path} run from {low:.3g} to {high:.3g}, so black is probably 0 there; expected [-1, 1], where -1 is black (save 2 x - 1)")
    return torch.from_numpy(array.astype(np.float32)).clamp(-1, 1)


def sample_model(folder: Path, n: int, sampler: str, seed: int, device: str, batch: int = 64) -> Tensor:
    """Sample a model; a class-conditional one draws its classes in turn."""
    import torch
    from tqdm import trange

    from common.diffusion.denoiser import Denoiser
    from common.diffusion.sampler_spec import Sampler
    from common.models.model_folder import load_model

    device, sampler = pick_device(device), Sampler.parse(sampler)
    net, schedule, prediction, clip_x0 = load_model(folder, device)
    if net.cfg.text_dim or not net.cfg.size:
        lack = "is a text-to-image model" if net.cfg.text_dim else "does not say how large its images are"
        raise UserError(f"{folder} {lack}; save its samples as PNGs and give that folder")
    images = []
    for start in trange(0, n, batch, desc="sampling", unit="batch", leave=False):
        count = min(batch, n - start)
        label = {"label": (torch.arange(start, start + count) % net.cfg.classes).to(device)} if net.cfg.classes else {}
        shape = (count, net.cfg.in_channels, net.cfg.size, net.cfg.size)
        *_, last = sampler.run(Denoiser(net, prediction, clip_x0, **label), schedule, shape, seed, start, device=device)
        images.append(last.x.cpu())
    return torch.cat(images)


# --------------------------------------------------------------------------------------------------------- the command


def table(report: Report, name: str) -> str:
    """The report, to be read by people."""
    r, (low, high) = report, report.frechet_interval
    lines = [
        f"n = {r.n} samples, compared with {r.reference:,} test images of {name}",
        "",
        f"{'':18}{'samples':>22}{f'{r.n} real images':>24}",
        f"{'Frechet distance':18}{f'{r.frechet:.2f} ± {r.frechet_sd:.2f}':>22}{f'{r.frechet_real:.2f} ± {r.frechet_real_sd:.2f}':>24}"
        f"    ratio {r.ratio:.1f}",
        f"{'  95 % interval':18}{f'{low:.2f} to {high:.2f}':>22}{'':>24}",
        f"{'KID':18}{f'{r.kid:.4f} ± {r.kid_sd:.4f}':>22}{f'{r.kid_real:.4f} ± {r.kid_real_sd:.4f}':>24}",
        f"{'confidence':18}{r.confidence:>22.3f}{r.confidence_real:>24.3f}    pure noise {r.confidence_noise:.3f}",
        "",
        "taken for         samples    real",
    ]
    for digit, (share, real) in enumerate(zip(r.histogram, r.histogram_real, strict=True)):
        lines.append(f"{digit:>9}{share:>15.1%}{real:>8.1%}  {'#' * round(100 * share)}")
    remarks = ["± is one standard deviation: of the samples' distances by resampling, of the floor between draws of real images",
               "the confidence of the classifier says nothing alone; see what pure noise gets", *r.notes]  # fmt: skip
    return "\n".join(lines + [""] + [f"note: {remark}" for remark in remarks])


def main(args: Args) -> None:
    if not args.samples.exists():
        raise UserError(f"there is no {args.samples}; give a folder of PNGs, a .npy or .npz file, or a model folder")

    from common.data.registry import auto, load
    from common.io.files import write_json

    name, why = auto(args.data_dir) if args.data == "auto" else (args.data, "")
    if why:
        print(why)
    reference, real = (load(name, data_dir=args.data_dir, split=split) for split in ("test", "train"))
    samples = read_samples(args.samples, args.n, args.sampler, args.seed, args.device)
    report = evaluate(samples, reference, real, args.seed)
    print(table(report, reference.name))
    if args.json:
        settings = {"samples": args.samples, "data": name, "seed": args.seed}
        write_json(args.json, settings | report._asdict() | {"ratio": report.ratio})
        print(args.json)
