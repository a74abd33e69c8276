"""A small classifier of handwritten digits: its features are what the evaluator compares.
The weights are shipped, in fp16.

It describes an image by 64 features, whose distribution common/evaluate/distances.py compares, and by ten logits, one
per digit. `python -m common.evaluate.train_digit_classifier` trains it again.
"""

import math
import time
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv

from common.data import load
from common.data.augmentation import affine
from common.errors import UserError
from common.evaluate.classifiers import WEIGHTS, convolution, fit, load_weights, round_to_half, save_if_accurate
from common.io.pixels import to_float

DIGIT_WEIGHTS = WEIGHTS / "mnist_cnn.safetensors"
COMMAND = "python -m common.evaluate.train_digit_classifier"
SIZE = 28  # pixels a side of the network's input
FEATURES = 64
CLASSES = 10
ACCURACY = 0.99  # needed on the test images; a network below this is not saved


class DigitClassifier(nn.Module):
    """A convolutional network, 28 -> 14 -> 7 -> 3 pixels a side."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *convolution(1, 24, kernel=5, stride=2),          # (N, 24, 14, 14)
            *convolution(24, 48), nn.MaxPool2d(2),            # (N, 48, 7, 7)
            *convolution(48, 96), nn.MaxPool2d(2),            # (N, 96, 3, 3)
            nn.Flatten(), nn.Dropout(0.2),                    # (N, 864)
            nn.Linear(96 * 3 * 3, FEATURES),                  # (N, 64)
        )  # fmt: skip
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(FEATURES, CLASSES))

    def features(self, x: Tensor) -> Tensor:
        """(N, 1, 28, 28) in [-1, 1] -> (N, 64), before the last ReLU,
        because the Frechet distance assumes Gaussians.
        """
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 28, 28) in [-1, 1] -> (N, 10) logits"""
        return self.head(self.features(x))


def preprocess(images: Tensor) -> Tensor:
    """Any images in [-1, 1], (N, 1 or 3, H, W) -> the input of the network: grey, (N, 1, 28, 28)."""
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise UserError(f"the digit classifier takes grey or RGB images (N, 1 or 3, H, W), not {tuple(images.shape)}")
    grey = tv.rgb_to_grayscale(images) if images.shape[1] == 3 else images
    if grey.shape[-2:] != (SIZE, SIZE):
        grey = tv.resize(grey, [SIZE, SIZE], interpolation=tv.InterpolationMode.BICUBIC, antialias=True)
    return grey.clamp(-1, 1)  # a bicubic curve can overshoot


def load_digit_classifier(path: Path = DIGIT_WEIGHTS) -> DigitClassifier:
    """The shipped network, float32, in evaluation mode."""
    return load_weights(DigitClassifier(), path, "digit classifier", f"{COMMAND} --data-dir data")


@torch.no_grad()
def classify(net: DigitClassifier, images: Tensor, batch: int = 500) -> tuple[Tensor, Tensor]:
    """Images in [-1, 1] or uint8, (N, C, H, W) -> features (N, 64) and class probabilities (N, 10), both float64."""
    features, probabilities = [], []
    for part in images.split(batch):
        part = to_float(part) if part.dtype == torch.uint8 else part
        found = net.features(preprocess(part))
        features.append(found.cpu().double())
        probabilities.append(net.head(found).cpu().double().softmax(1))
    return torch.cat(features), torch.cat(probabilities)


def accuracy(net: DigitClassifier, pixels: Tensor, labels: Tensor) -> float:
    """Share of the images whose most probable class is the true one."""
    return float((classify(net, pixels)[1].argmax(1) == labels).cpu().double().mean())


# ----------------------------------------------------------------------------------------------------------- training


def distort(x: Tensor, rng: torch.Generator) -> Tensor:
    """Turn each digit by up to 10 degrees, scale by up to 10 %, shift by up to 2 pixels. (B, 1, 28, 28)"""
    turn, scale, dx, dy = 2 * torch.rand(4, len(x), generator=rng) - 1  # each (B,) in [-1, 1)
    shift = 2 / (SIZE / 2)  # 2 pixels, in halves of the image
    return affine(x, turn * math.radians(10), 1 + 0.1 * scale, torch.stack([shift * dx, shift * dy], 1))


def train(data_dir: Path, epochs: int, batch_size: int, lr: float, seed: int) -> DigitClassifier:
    """Cross-entropy on distorted MNIST; all random numbers follow from the seed."""
    data = load("mnist", SIZE, data_dir)

    def loss_of(net: DigitClassifier, indices: Tensor, rng: torch.Generator) -> Tensor:
        batch = data.batch(indices)
        return F.cross_entropy(net(distort(batch["image"], rng)), batch["label"])

    return rescale(fit(DigitClassifier, loss_of, len(data), epochs, batch_size, lr, seed, warmup=0.2), data.pixels)


@torch.no_grad()
def rescale(net: DigitClassifier, pixels: Tensor) -> DigitClassifier:
    """Give the features a variance near one, so that distances have a natural unit.

    ReLU(x / c) = ReLU(x) / c, so the logits stay the same; c is a power of two, so that fp16 loses nothing by it.
    """
    c = 2.0 ** round(math.log2(classify(net, pixels)[0].std(0).mean()))
    features, logits = cast(nn.Linear, net.body[-1]), cast(nn.Linear, net.head[-1])
    features.weight.div_(c)
    features.bias.div_(c)
    logits.weight.mul_(c)
    return net


def train_and_save(path: Path, data_dir: Path, epochs: int, batch_size: int, lr: float, seed: int) -> None:
    """Train, print the accuracy on the test images, and save the weights if it is high enough."""
    test = load("mnist", SIZE, data_dir, "test")
    began = time.perf_counter()
    net = train(data_dir, epochs, batch_size, lr, seed)
    round_to_half(net)
    right = accuracy(net, test.pixels, cast(Tensor, test.labels))
    print(
        f"{right:.2%} of the {len(test):,} test images are recognised, after {time.perf_counter() - began:.0f} s of training"
    )
    command = f"{COMMAND} --epochs {epochs} --batch-size {batch_size} --lr {lr} --seed {seed}"
    save_if_accurate(net, path, right, ACCURACY, command, seed)
