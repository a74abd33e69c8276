"""A small network that names all eleven attributes of a drawn creature: the eye that judges text-to-image models.

  python -m common.evaluate.creature_classifier check                   how often it is right, attribute by attribute
  python -m common.evaluate.creature_classifier train                   trains it again, in about ten minutes on a core of its own

Did the picture become what its caption says? Asked of this judge, that is a number. It learned from creatures that nobody else
sees: of the train AND of the held-out split, under another seed than the course's 0, in their natural proportion of nine to one. So
it has seen every combination, blue creatures of fire too, and has no opinion about which of them go together: it judges a
model's held-out compositions as fairly as all others. (A judge that had never seen one might take the flames of a blue creature
for something else, and the model would get the blame.) It is tested on the seed-0 test and held-out splits, which it never saw.
Its weights are shipped, fp16, in common/weights.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv
from tqdm import tqdm
from tyro.conf import Positional

from common.cli import run
from common.data.creatures.attributes import NAMES, VALUES
from common.data.creatures.dataset import load_creatures
from common.errors import UserError, explain
from common.io.files import write_atomically
from common.io.pixels import to_float
from common.random import generator

WEIGHTS = Path(__file__).parent / "weights" / "creatures_cnn.safetensors"
SIZE = 32        # pixels a side that the network sees
FEATURES = 64    # numbers by which it describes a picture
KINDS = [len(values) for values in VALUES]  # how many values each attribute has, 57 together
ACCURACY = 0.98  # mean over the attributes, on the test creatures; a network below this is not kept
HELD_OUT = 0.1   # share of all combinations that are held out from the others: the judge sees as many


class CreatureClassifier(nn.Module):
    """A plain convolutional network, 16 -> 8 -> 4 pixels a side, and one linear head for each attribute.

    Four neighbouring pixels become one with four times the channels: nothing is lost, and the first layers cost a quarter.
    """

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.PixelUnshuffle(2),                                           # (N, 12, 16, 16)
            *_convolution(12, 48), *_convolution(48, 64), nn.MaxPool2d(2),  # (N, 64, 8, 8)
            *_convolution(64, 96), nn.MaxPool2d(2),                         # (N, 96, 4, 4)
            *_convolution(96, 96),                                          # (N, 96, 4, 4)
            nn.Flatten(), nn.Dropout(0.1),                                  # (N, 1536)
            nn.Linear(96 * 4 * 4, FEATURES),                                # (N, 64)
        )  # fmt: skip
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, kinds) for name, kinds in zip(NAMES, KINDS, strict=True)})

    def features(self, x: Tensor) -> Tensor:
        """(N, 3, 32, 32) in [-1, 1] -> (N, 64): what it has understood of a picture. Like creatures lie near each other."""
        return self.body(x)

    def answer(self, features: Tensor) -> list[Tensor]:
        """(N, 64) -> logits of each attribute, eleven times (N, its number of values)"""
        return [head(F.relu(features)) for head in self.heads.values()]

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, 3, 32, 32) in [-1, 1] -> logits of each attribute, eleven times (N, its number of values)"""
        return self.answer(self.features(x))


def _convolution(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def to_judge_input(images: Tensor) -> Tensor:
    """RGB images in [-1, 1] or uint8, (N, 3, S, S) -> what the network looks at: float32 in [-1, 1], (N, 3, 32, 32)."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise UserError(f"the attribute classifier takes RGB images (N, 3, S, S), not {tuple(images.shape)}")
    images = to_float(images) if images.dtype == torch.uint8 else images.float()
    if images.shape[-2:] != (SIZE, SIZE):
        images = tv.resize(images, [SIZE, SIZE], interpolation=tv.InterpolationMode.BICUBIC, antialias=True)
    return images.clamp(-1, 1)  # a bicubic curve can overshoot, and so can a sampler


def load_judge(path: Path = WEIGHTS) -> CreatureClassifier:
    """The shipped network, float32, in evaluation mode."""
    judge = CreatureClassifier()
    try:
        judge.load_state_dict({name: value.float() if value.is_floating_point() else value for name, value in load_file(path).items()})
    except (OSError, SafetensorError, RuntimeError) as problem:
        raise UserError(f"the weights of the attribute classifier, {path}, cannot be loaded ({explain(problem)}); "
                        "restore the file from the repository, or train it again: python -m common.evaluate.creature_classifier train") from problem  # fmt: skip
    return judge.eval()


# --------------------------------------------------------------------------------------------------------- what it sees


@torch.no_grad()
def look(judge: CreatureClassifier, images: Tensor, batch: int = 500) -> tuple[Tensor, list[Tensor]]:
    """Images in [-1, 1] or uint8, (N, 3, S, S) -> features (N, 64), and the probabilities of each attribute's values, eleven times
    (N, its number of values)."""
    features = torch.cat([judge.features(to_judge_input(part)) for part in images.split(batch)])
    return features, [logits.softmax(1) for logits in judge.answer(features)]


def read_attributes(judge: CreatureClassifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """What the judge takes each picture for.

    images: (N, 3, S, S) in [-1, 1] or uint8; other sizes than 32 are brought to it. Returns a table like that of
    `common.data.dataset.Attributes`, (N, 11) int64, and how probable the judge finds each entry, (N, 11).
    """
    best = [each.max(1) for each in look(judge, images)[1]]
    return torch.stack([b.indices for b in best], 1), torch.stack([b.values for b in best], 1)


def accuracy(read: Tensor, wanted: Tensor, mentioned: Tensor | None = None) -> float:
    """Share of what was wanted that is there. read, wanted: (N, 11); mentioned: (N, 11) bool, what counts; by default all."""
    return float((read == wanted)[_counted(wanted, mentioned)].cpu().double().mean())


def accuracies(read: Tensor, wanted: Tensor, mentioned: Tensor | None = None) -> Tensor:
    """`accuracy` of each attribute alone, (11,) float64; NaN for one that is never mentioned."""
    counted = _counted(wanted, mentioned)
    return ((read == wanted) & counted).cpu().double().sum(0) / counted.cpu().double().sum(0)


def all_right(read: Tensor, wanted: Tensor, mentioned: Tensor | None = None) -> Tensor:
    """For each picture, whether everything that was mentioned is there. (N,) bool"""
    return ((read == wanted) | ~_counted(wanted, mentioned)).all(1)


def chance(read: Tensor, wanted: Tensor, mentioned: Tensor | None = None) -> Tensor:
    """The floor of `accuracies`, (11,): what these pictures would get if each were compared with the captions of all others.

    That is, a model that draws as well as this but cannot read. NaN for an attribute that is never mentioned.
    """
    counted, n = _counted(wanted, mentioned), len(read)
    others = [(torch.bincount(read[:, k], minlength=kinds)[wanted[:, k]] - (read[:, k] == wanted[:, k]).long()) / (n - 1)
              for k, kinds in enumerate(KINDS)]  # of the other n - 1 pictures, the share that would do as well  # fmt: skip
    return (torch.stack(others, 1).cpu().double() * counted).sum(0) / counted.cpu().double().sum(0)


def _counted(wanted: Tensor, mentioned: Tensor | None) -> Tensor:
    return torch.ones_like(wanted, dtype=torch.bool) if mentioned is None else mentioned


def mentioned_table(mentions: Sequence[Sequence[str]]) -> Tensor:
    """Names of the attributes that each caption speaks of -> (N, 11) bool."""
    return torch.tensor([[name in names for name in NAMES] for names in mentions], dtype=torch.bool).view(-1, len(NAMES))


# ------------------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class Args:
    what: Positional[Literal["check", "train"]] = "check"
    """check the weights, or train them."""
    weights: Path = WEIGHTS
    """Where the weights are, or go."""
    n: int = 24_000
    """How many creatures it is trained on, a tenth of them held-out combinations."""
    epochs: int = 8
    """Passes over them."""
    batch_size: int = 128
    lr: float = 3e-3
    """Peak learning rate of AdamW; it rises, then falls to zero."""
    seed: int = 1
    """Of the creatures and of the training; not 0, which draws those that the judge is tested on."""


def spoil(x: Tensor, draw: torch.Generator) -> Tensor:
    """Make drawn creatures look as generated ones may: a little shifted, blurred, noisy, tinted, too dark or too strong.

    (B, 3, S, S) in [-1, 1] -> the same, each image with its own luck; half of them are not blurred.
    """
    B, _, S, _ = x.shape
    u = lambda *shape: torch.rand(shape, generator=draw)  # noqa: E731
    x = F.pad(x, (1, 1, 1, 1), mode="replicate")
    blur = (u(B, 1, 1, 1) - 0.5).clamp(min=0) / 2                               # weight of each neighbour, 0 to 1/4
    x = (x + blur * (x.roll(1, 2) + x.roll(-1, 2))) / (1 + 2 * blur)
    x = (x + blur * (x.roll(1, 3) + x.roll(-1, 3))) / (1 + 2 * blur)
    down, right = torch.randint(3, (2, B), generator=draw)                      # by at most a pixel
    rows, columns = (start[:, None] + torch.arange(S) for start in (down, right))
    x = x[torch.arange(B)[:, None, None], :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)  # (B, 3, S, S)
    grey = x.mean(1, keepdim=True)
    x = grey + (0.85 + 0.45 * u(B, 1, 1, 1)) * (x - grey)                       # saturation
    x = (0.9 + 0.25 * u(B, 1, 1, 1)) * x + 0.12 * (2 * u(B, 1, 1, 1) - 1)       # contrast and brightness
    x = x + 0.05 * (2 * u(B, 3, 1, 1) - 1)                                      # tint
    x = x + 0.08 * u(B, 1, 1, 1) * torch.randn(x.shape, generator=draw)         # noise
    return x.clamp(-1, 1)


def lessons(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """n creatures of all combinations: pixels (n, 3, 32, 32) uint8 and their table (n, 11)."""
    held = max(1, round(HELD_OUT * n))
    parts = [load_creatures("train", n - held, SIZE, seed), load_creatures("heldout", held, SIZE, seed)]
    return torch.cat([p.pixels for p in parts]), torch.cat([p.attributes.table for p in parts])


def train(args: Args) -> CreatureClassifier:
    """Cross-entropy, summed over the attributes, on spoiled creatures; everything random follows from the seed."""
    pixels, table = lessons(args.n, args.seed)
    torch.manual_seed(args.seed)
    judge, steps = CreatureClassifier(), args.epochs * (len(pixels) // args.batch_size)
    optimizer = torch.optim.AdamW(judge.parameters(), args.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, steps, pct_start=0.15)
    draw = generator(args.seed)
    bar = tqdm(total=steps, dynamic_ncols=True)
    for _ in range(args.epochs):
        order = torch.randperm(len(pixels), generator=draw)
        for indices in order[: len(pixels) // args.batch_size * args.batch_size].split(args.batch_size):
            logits = judge(spoil(to_float(pixels[indices]), draw))
            loss = sum(F.cross_entropy(each, table[indices, k]) for k, each in enumerate(logits))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.set_postfix({"loss": f"{loss.item():.3f}"}, refresh=False)
            bar.update()
    bar.close()
    return judge.eval()


def save_judge(judge: CreatureClassifier, path: Path, **metadata: object) -> None:
    weights = {name: value.half() if value.is_floating_point() else value for name, value in judge.state_dict().items()}
    text = {"format": "pt"} | {name: str(value) for name, value in metadata.items()}
    write_atomically(path, lambda file: file.write(save(weights, metadata=text)))


def check(judge: CreatureClassifier) -> float:
    """Print how often it is right about creatures that it never saw; returns the mean on the test split."""
    rows = {}
    for split in ("test", "heldout"):
        data = load_creatures(split, size=SIZE)
        for name, pixels in {split: to_float(data.pixels), f"{split}, spoiled": spoil(to_float(data.pixels), generator(0))}.items():
            rows[name] = accuracies(read_attributes(judge, pixels)[0], data.attributes.table)
    print(f"{'':12}" + "".join(f"{name:>18}" for name in rows))
    for k, name in enumerate(NAMES):
        print(f"{name:12}" + "".join(f"{float(row[k]):>18.1%}" for row in rows.values()))
    print(f"{'mean':12}" + "".join(f"{float(row.mean()):>18.2%}" for row in rows.values()))
    return float(rows["test"].mean())


def main(args: Args) -> None:
    if args.what == "check":
        check(load_judge(args.weights))
        return
    if args.seed < 1:
        raise UserError(f"--seed must be 1 or more, not {args.seed}: seed 0 draws the creatures that the classifier is tested on")
    if args.n < args.batch_size:
        raise UserError(f"--n {args.n} creatures do not fill a batch of {args.batch_size}; give more of them, or a smaller --batch-size")
    began = time.perf_counter()
    judge = train(args)
    judge.load_state_dict({name: value.half().to(value.dtype) for name, value in judge.state_dict().items()})  # as it will be stored
    print(f"{args.epochs} passes over {args.n:,} creatures in {time.perf_counter() - began:.0f} s; on 1,000 of each split that it never saw:")
    right = check(judge)
    if right < ACCURACY:
        raise UserError(f"the accuracy {right:.1%} is below the {ACCURACY:.0%} that evaluations need, so the weights are not saved; give more --epochs")
    command = f"python -m common.evaluate.creature_classifier train --n {args.n} --epochs {args.epochs} --batch-size {args.batch_size} --lr {args.lr} --seed {args.seed}"
    save_judge(judge, args.weights, test_accuracy=right, seed=args.seed, command=command, torch=torch.__version__)
    print(args.weights)


if __name__ == "__main__":
    run(main, Args)
