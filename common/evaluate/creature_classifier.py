"""A small network that classifies all eleven attributes of a drawn creature, to evaluate text-to-image models.

It tells whether a picture shows what its caption asks for. It is trained on creatures that no other program uses: of
the train and the held-out split, under another seed than the course's 0, in their natural proportion of nine to one.
So it has seen every combination, blue creatures of fire too, and has no bias towards combinations that belong to the
train split. (A classifier that had never seen one might misread the flames of a blue creature, and the evaluated model
would be blamed.) It is tested on the test and held-out splits of seed 0. Its weights are shipped, in fp16; `python -m
common.evaluate.train_creature_classifier` trains it again.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv

from common.data.creatures.attributes import NAMES, VALUES
from common.data.creatures.dataset import load_creatures
from common.data.dataset import Attributes
from common.errors import UserError
from common.evaluate.classifiers import WEIGHTS, convolution, fit, load_weights, round_to_half, save_if_accurate
from common.io.pixels import to_float
from common.io.tables import print_table
from common.random import generator

CREATURE_WEIGHTS = WEIGHTS / "creatures_cnn.safetensors"
COMMAND = "python -m common.evaluate.train_creature_classifier"
SIZE = 32  # pixels a side of the network's input
FEATURES = 64
KINDS = [len(values) for values in VALUES]  # number of values of each attribute, 57 together
ACCURACY = 0.98  # needed on the test creatures, mean over the attributes; a network below this is not saved
HELD_OUT = 0.1  # share of held-out combinations in the training set, which is their share of all combinations


class CreatureClassifier(nn.Module):
    """A convolutional network, 16 -> 8 -> 4 pixels a side, with one linear head for each attribute.

    PixelUnshuffle turns 2 x 2 pixels into channels: it loses nothing, and the first layers cost a quarter.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.PixelUnshuffle(2),                                           # (N, 12, 16, 16)
            *convolution(12, 48), *convolution(48, 64), nn.MaxPool2d(2),    # (N, 64, 8, 8)
            *convolution(64, 96), nn.MaxPool2d(2),                          # (N, 96, 4, 4)
            *convolution(96, 96),                                           # (N, 96, 4, 4)
            nn.Flatten(), nn.Dropout(0.1),                                  # (N, 1536)
            nn.Linear(96 * 4 * 4, FEATURES),                                # (N, 64)
        )  # fmt: skip
        self.heads = nn.ModuleDict(
            {name: nn.Linear(FEATURES, kinds) for name, kinds in zip(NAMES, KINDS, strict=True)}
        )

    def features(self, x: Tensor) -> Tensor:
        """(N, 3, 32, 32) in [-1, 1] -> (N, 64); similar creatures have similar features"""
        return self.body(x)

    def logits(self, features: Tensor) -> list[Tensor]:
        """(N, 64) -> logits of each attribute, eleven times (N, its number of values)"""
        return [head(F.relu(features)) for head in self.heads.values()]

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, 3, 32, 32) in [-1, 1] -> logits of each attribute, eleven times (N, its number of values)"""
        return self.logits(self.features(x))


def preprocess(images: Tensor) -> Tensor:
    """RGB images in [-1, 1] or uint8, (N, 3, S, S) -> the input of the network: float32 in [-1, 1], (N, 3, 32, 32)."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise UserError(f"the attribute classifier takes RGB images (N, 3, S, S), not {tuple(images.shape)}")
    images = to_float(images) if images.dtype == torch.uint8 else images.float()
    if images.shape[-2:] != (SIZE, SIZE):
        images = tv.resize(images, [SIZE, SIZE], interpolation=tv.InterpolationMode.BICUBIC, antialias=True)
    return images.clamp(-1, 1)  # a bicubic curve can overshoot, and so can a sampler


def load_creature_classifier(path: Path = CREATURE_WEIGHTS) -> CreatureClassifier:
    """The shipped network, float32, in evaluation mode."""
    return load_weights(CreatureClassifier(), path, "attribute classifier", COMMAND)


# --------------------------------------------------------------------------------------------------------- predictions


@torch.no_grad()
def classify(classifier: CreatureClassifier, images: Tensor, batch: int = 500) -> tuple[Tensor, list[Tensor]]:
    """Images in [-1, 1] or uint8, (N, 3, S, S) -> features (N, 64), and the probabilities of each attribute's values,
    eleven times (N, its number of values)."""
    features = torch.cat([classifier.features(preprocess(part)) for part in images.split(batch)])
    return features, [logits.softmax(1) for logits in classifier.logits(features)]


def read_attributes(classifier: CreatureClassifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """The most probable value of each attribute, and its probability.

    images: (N, 3, S, S) in [-1, 1] or uint8, resized to 32 pixels. Returns a table like that of
    `common.data.dataset.Attributes`, (N, 11) int64, and the probability of each entry, (N, 11).
    """
    best = [each.max(1) for each in classify(classifier, images)[1]]
    return torch.stack([b.indices for b in best], 1), torch.stack([b.values for b in best], 1)


def accuracy(read: Tensor, wanted: Tensor, mentioned: Tensor | None = None) -> float:
    """Share of the wanted attributes that the pictures show.
    read, wanted: (N, 11); mentioned: (N, 11) bool, those that count; by default all.
    """
    return float((read == wanted)[_counted(wanted, mentioned)].cpu().double().mean())


def accuracies(read: Tensor, wanted: Tensor, mentioned: Tensor | None = None) -> Tensor:
    """`accuracy` of each attribute alone, (11,) float64; NaN for one that is never mentioned."""
    counted = _counted(wanted, mentioned)
    return ((read == wanted) & counted).cpu().double().sum(0) / counted.cpu().double().sum(0)


def all_right(read: Tensor, wanted: Tensor, mentioned: Tensor | None = None) -> Tensor:
    """For each picture, whether it shows everything that was mentioned. (N,) bool"""
    return ((read == wanted) | ~_counted(wanted, mentioned)).all(1)


def chance(read: Tensor, wanted: Tensor, mentioned: Tensor | None = None) -> Tensor:
    """The floor of `accuracies`, (11,): the accuracy if each picture is compared with the captions of all others.

    A model that draws as well but ignores its captions reaches it. NaN for an attribute that is never mentioned.
    """
    counted, n = _counted(wanted, mentioned), len(read)
    others = [
        (torch.bincount(read[:, k], minlength=kinds)[wanted[:, k]] - (read[:, k] == wanted[:, k]).long()) / (n - 1)
        for k, kinds in enumerate(KINDS)
    ]  # share of the other n - 1 pictures that show the wanted value
    return (torch.stack(others, 1).cpu().double() * counted).sum(0) / counted.cpu().double().sum(0)


def _counted(wanted: Tensor, mentioned: Tensor | None) -> Tensor:
    return torch.ones_like(wanted, dtype=torch.bool) if mentioned is None else mentioned


def mentioned_table(mentions: Sequence[Sequence[str]]) -> Tensor:
    """Names of the attributes that each caption mentions -> (N, 11) bool."""
    return torch.tensor([[name in names for name in NAMES] for names in mentions], dtype=torch.bool).view(
        -1, len(NAMES)
    )


# ------------------------------------------------------------------------------------------------------------ training


def corrupt(x: Tensor, rng: torch.Generator) -> Tensor:
    """Make drawn creatures look as generated ones may:
    slightly shifted, blurred, noisy, tinted, too dark or too saturated.

    (B, 3, S, S) in [-1, 1] -> the same, each image by other random amounts; half of them are not blurred.
    """
    B, _, S, _ = x.shape
    u = lambda *shape: torch.rand(shape, generator=rng)  # noqa: E731
    x = F.pad(x, (1, 1, 1, 1), mode="replicate")
    blur = (u(B, 1, 1, 1) - 0.5).clamp(min=0) / 2  # weight of each neighbour, 0 to 1/4
    x = (x + blur * (x.roll(1, 2) + x.roll(-1, 2))) / (1 + 2 * blur)
    x = (x + blur * (x.roll(1, 3) + x.roll(-1, 3))) / (1 + 2 * blur)
    down, right = torch.randint(3, (2, B), generator=rng)  # by at most a pixel
    rows, columns = (start[:, None] + torch.arange(S) for start in (down, right))
    x = x[torch.arange(B)[:, None, None], :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)  # (B, 3, S, S)
    grey = x.mean(1, keepdim=True)
    x = grey + (0.85 + 0.45 * u(B, 1, 1, 1)) * (x - grey)  # saturation
    x = (0.9 + 0.25 * u(B, 1, 1, 1)) * x + 0.12 * (2 * u(B, 1, 1, 1) - 1)  # contrast and brightness
    x = x + 0.05 * (2 * u(B, 3, 1, 1) - 1)  # tint
    x = x + 0.08 * u(B, 1, 1, 1) * torch.randn(x.shape, generator=rng)  # noise
    return x.clamp(-1, 1)


def training_set(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """n creatures of all combinations: pixels (n, 3, 32, 32) uint8 and their table (n, 11)."""
    held = max(1, round(HELD_OUT * n))
    parts = [load_creatures("train", n - held, SIZE, seed), load_creatures("heldout", held, SIZE, seed)]
    return torch.cat([p.pixels for p in parts]), torch.cat([p.attributes.table for p in parts if p.attributes])


def train(n: int, epochs: int, batch_size: int, lr: float, seed: int) -> CreatureClassifier:
    """Cross-entropy, summed over the attributes, on corrupted creatures; all random numbers follow from the seed."""
    pixels, table = training_set(n, seed)

    def loss_of(net: CreatureClassifier, indices: Tensor, rng: torch.Generator) -> Tensor:
        logits = net(corrupt(to_float(pixels[indices]), rng))
        return torch.stack([F.cross_entropy(each, table[indices, k]) for k, each in enumerate(logits)]).sum()

    return fit(CreatureClassifier, loss_of, len(pixels), epochs, batch_size, lr, seed, warmup=0.15)


def check(classifier: CreatureClassifier) -> float:
    """Print the accuracy of each attribute on creatures outside of the training set;
    returns the mean on the test split.
    """
    rows = {}
    for split in ("test", "heldout"):
        data = load_creatures(split, size=SIZE)
        x = to_float(data.pixels)
        for name, images in {split: x, f"{split}, corrupted": corrupt(x, generator(0))}.items():
            rows[name] = accuracies(read_attributes(classifier, images)[0], cast(Attributes, data.attributes).table)
    lines = [{"": name} | {split: f"{row[k]:.1%}" for split, row in rows.items()} for k, name in enumerate(NAMES)]
    print_table([*lines, {"": "mean"} | {split: f"{row.mean():.2%}" for split, row in rows.items()}])
    return float(rows["test"].mean())


def train_and_save(path: Path, n: int, epochs: int, batch_size: int, lr: float, seed: int) -> None:
    """Train, print the accuracy, and save the weights if it is high enough."""
    if seed < 1:
        raise UserError(
            f"--seed must be 1 or more, not {seed}: seed 0 draws the creatures that the classifier is tested on"
        )
    if n < batch_size:
        raise UserError(
            f"--n {n} creatures do not fill a batch of {batch_size}; give more of them, or a smaller --batch-size"
        )
    began = time.perf_counter()
    net = train(n, epochs, batch_size, lr, seed)
    round_to_half(net)
    print(
        f"{epochs} passes over {n:,} creatures in {time.perf_counter() - began:.0f} s; on 1,000 unseen creatures of each split:"
    )
    right = check(net)
    command = f"{COMMAND} --n {n} --epochs {epochs} --batch-size {batch_size} --lr {lr} --seed {seed}"
    save_if_accurate(net, path, right, ACCURACY, command, seed)
