"""Compare generated images with real ones, by the features of a small classifier of digits.

Each distance stands beside its floor: the distance of as many real images. (A model that copied its training images
would reach the floor, too: look at the images as well.) No number here is comparable with an FID, whose features are
those of an Inception network.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from common.data import Images
from common.data.registry import load
from common.data.sources.torchvision_datasets import find_mnist
from common.errors import UserError
from common.evaluate.classifiers import WEIGHTS
from common.evaluate.digit_classifier import FEATURES, SIZE, DigitClassifier, classify, load_digit_classifier
from common.evaluate.distances import Frechet, bootstrap, kernel_distance, one_thread, random_splits
from common.io.files import write_atomically
from common.io.pixels import to_bytes
from common.random import EVALUATION, generator

MIN_SAMPLES = 32  # a covariance of 64 features from fewer samples is meaningless
DRAWS = 20  # sets of real images, for the floor
TEST_FEATURES = WEIGHTS / "mnist_test_features.safetensors"  # of MNIST's 10,000 test images


class ReferenceFeatures(NamedTuple):
    """Features of real images, where these are not at hand."""

    name: str  # of the data set
    features: Tensor  # (R, 64) float64

    @classmethod
    def of(cls, images: Images, size: int, net: DigitClassifier) -> "ReferenceFeatures":
        """Those of these images, at the size of the samples that they are compared with."""
        return cls(images.name, classify(net, images.resized(size).pixels)[0])

    def __len__(self) -> int:  # of a NamedTuple it would be the number of its fields
        return len(self.features)


class Report(NamedTuple):
    """What `evaluate` measures. `real`: as many real images as there are samples, compared with the same reference."""

    n: int  # samples
    reference: int  # real images they are compared with
    frechet: float  # Frechet distance of the samples
    frechet_sd: float  # its bootstrap standard deviation
    frechet_interval: tuple[float, float]  # its bootstrap interval, 95 %
    frechet_real: float  # the floor: mean over several draws of real images
    frechet_real_sd: float  # standard deviation between those draws
    kid: float  # kernel distance of the samples
    kid_sd: float  # standard deviation over subsets
    kid_real: float  # its floor, which is about zero
    kid_real_sd: float
    histogram: tuple[float, ...]  # share of the samples that are classified as 0, 1, ..., 9
    histogram_real: tuple[float, ...]
    confidence: float  # mean probability of the most probable class
    confidence_real: float
    confidence_noise: float  # the same for pure noise
    notes: tuple[str, ...]  # limits of these numbers, as sentences

    @property
    def ratio(self) -> float:
        """Frechet distance in units of the floor; 1 is as good as real by this measure."""
        return self.frechet / self.frechet_real


def evaluate(samples: Tensor, reference: Images | ReferenceFeatures, real: Images, seed: int = 0) -> Report:
    """Compare samples with real images.

    samples    (N, 1 or 3, S, S) floats in [-1, 1]; compared as the bytes they would be saved as
    reference  real images that the model was not trained on, or their features: the test split
    real       other real images, for the floor: the training split

    Both sets are first brought to the samples' size, as a model's training images were. Where `real` is too small for
    two disjoint draws of N images, fewer samples are used, and the notes say so.
    Raises UserError for what cannot be compared.
    """
    n, notes = check(samples, reference, real)
    return Evaluator(reference, real, samples.shape[-1], n, seed)(samples, tuple(notes))


class Evaluator:
    """`evaluate` for many sets of n samples: what they are compared with is classified only once.

    evaluator = Evaluator(reference, real, size, n); evaluator(samples) -> Report, where samples is (N, 1 or 3, size,
    size). Of more than n samples, n are chosen, because distances compare at equal numbers only.
    """

    def __init__(self, reference: Images | ReferenceFeatures, real: Images, size: int, n: int, seed: int = 0) -> None:
        self.n, self.seed, self.net = n, seed, load_digit_classifier()
        if isinstance(reference, Images):
            reference = ReferenceFeatures.of(reference, size, self.net)
        self.features_reference = reference.features
        chosen = Images(real.name, choose(real.pixels, DRAWS * n, seed)).resized(size).pixels
        features_real, self.classes_real = classify(self.net, chosen)
        noise = torch.randn((n, 1, size, size), generator=generator(EVALUATION, seed, 2)).clamp(-1, 1)
        _, self.classes_noise = classify(self.net, noise)
        with one_thread():
            self.frechet = Frechet(self.features_reference)
            splits = list(random_splits(features_real, n, DRAWS, seed))
            self.frechet_real = torch.tensor([self.frechet(split) for split in splits])
            self.kid_real = torch.tensor(
                [kernel_distance(split, self.features_reference, seed)[0] for split in splits]
            )

    def __call__(self, samples: Tensor, notes: tuple[str, ...] = ()) -> Report:
        if len(samples) > self.n:
            samples = choose(samples, self.n, self.seed)
        features, classes = classify(self.net, to_bytes(samples))
        with one_thread():
            estimate = bootstrap(self.frechet, features, self.seed)
            kid, kid_sd = kernel_distance(features, self.features_reference, self.seed)
        return Report(
            n=self.n,
            reference=len(self.features_reference),
            frechet=estimate.value,
            frechet_sd=estimate.sd,
            frechet_interval=(estimate.low, estimate.high),
            frechet_real=float(self.frechet_real.mean()),
            frechet_real_sd=float(self.frechet_real.std()),
            kid=kid,
            kid_sd=kid_sd,
            kid_real=float(self.kid_real.mean()),
            kid_real_sd=float(self.kid_real.std()),
            histogram=histogram(classes),
            histogram_real=histogram(self.classes_real),
            confidence=confidence(classes),
            confidence_real=confidence(self.classes_real),
            confidence_noise=confidence(self.classes_noise),
            notes=notes,
        )


def check(samples: Tensor, reference: Images | ReferenceFeatures, real: Images) -> tuple[int, list[str]]:
    """How many samples can be compared, and the notes."""
    if samples.ndim != 4 or samples.shape[1] not in (1, 3) or samples.shape[2] != samples.shape[3]:
        raise UserError(f"samples must be square grey or RGB images, (N, 1 or 3, S, S), not {tuple(samples.shape)}")
    if not samples.isfinite().all():
        raise UserError("the samples hold values that are not finite (NaN or infinity), so they are no images")
    n, notes = min(len(samples), len(real) // 2), []
    if min(n, len(reference)) < MIN_SAMPLES:
        raise UserError(
            f"{len(samples)} samples, {len(reference)} reference and {len(real)} other real images are too few to "
            f"compare; at least {MIN_SAMPLES}, {MIN_SAMPLES} and {2 * MIN_SAMPLES} are needed, and 500 samples are a good number"
        )
    if n < len(samples):
        notes.append(
            f"only {n} of the {len(samples)} samples are used: {real.name} has just {len(real)} images for the floor"
        )
    if min(n, len(reference)) <= FEATURES:
        notes.append(f"{min(n, len(reference))} images cannot fill {FEATURES} features: the distances are very rough")
    if reference.name not in ("mnist", "mnist-10k"):
        notes.append(
            f"the features are those of a classifier of MNIST digits: with {reference.name}, use them to compare models, no more"
        )
    return n, notes


def choose(images: Tensor, n: int, seed: int) -> Tensor:
    """n of the images at random (or all there are): files are often sorted, by class or by writer. (n, C, H, W)"""
    return images[torch.randperm(len(images), generator=generator(EVALUATION, seed, 1))[:n]]


def histogram(classes: Tensor) -> tuple[float, ...]:
    """(N, 10) probabilities -> share of each most probable class."""
    return tuple((classes.argmax(1).bincount(minlength=classes.shape[1]).cpu().double() / len(classes)).tolist())


def confidence(classes: Tensor) -> float:
    return float(classes.max(1).values.mean())


# ------------------------------------------------------------------------------------------------- the real images


def load_real(name: str, data_dir: Path) -> tuple[Images, Images]:
    """The test images and the training images of a data set.
    Where there is no local copy of MNIST, its embedded part is taken.
    """
    if name == "mnist" and find_mnist(data_dir, "MNIST", "test") is None:
        name = "mnist-10k"
    return load(name, data_dir=data_dir, split="test"), load(name, data_dir=data_dir)


def reference_for(images: Images, size: int) -> Images | ReferenceFeatures:
    """What samples of size x size pixels are compared with: these test images.
    For the embedded 2,000 of MNIST, these are the features of all 10,000, which are embedded for its own size.
    """
    if images.name == "mnist-10k" and size == SIZE:
        return ReferenceFeatures("mnist", load_file(TEST_FEATURES)["features"].cpu().double())
    return images


def save_reference(net: DigitClassifier, pixels: Tensor, path: Path = TEST_FEATURES) -> None:
    """Write the features of these test images in half precision: 1.3 MB for 10,000 images."""
    data = save({"features": classify(net, pixels)[0].to(torch.float16)})
    write_atomically(path, lambda file: file.write(data))
