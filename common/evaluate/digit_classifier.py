"""A small classifier of handwritten digits: the eye of the evaluator. Its weights are shipped, fp16, in common/weights.

  python -m common.evaluate.digit_classifier --data-dir data        trains it again, in a few minutes on a CPU

What it sees is measured in two numbers per image: 64 features, whose distribution common/evaluate/distances.py compares, and ten
logits, one per digit.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv
from tqdm import tqdm

from common.cli import run
from common.data import load
from common.errors import UserError, explain
from common.io.files import write_atomically
from common.io.pixels import to_float
from common.random import generator

WEIGHTS = Path(__file__).parent / "weights" / "mnist_cnn.safetensors"
SIZE = 28        # pixels a side that the network sees
FEATURES = 64    # numbers by which it describes an image
CLASSES = 10
ACCURACY = 0.99  # on the test images; a network below this is not kept


class Classifier(nn.Module):
    """A plain convolutional network, 28 -> 14 -> 7 -> 3 pixels a side."""

    num_features = FEATURES

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(1, 24, kernel=5, stride=2),         # (N, 24, 14, 14)
            *_convolution(24, 48), nn.MaxPool2d(2),           # (N, 48, 7, 7)
            *_convolution(48, 96), nn.MaxPool2d(2),           # (N, 96, 3, 3)
            nn.Flatten(), nn.Dropout(0.2),                    # (N, 864)
            nn.Linear(96 * 3 * 3, FEATURES),                  # (N, 64)
        )  # fmt: skip
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(FEATURES, CLASSES))

    def features(self, x: Tensor) -> Tensor:
        """(N, 1, 28, 28) in [-1, 1] -> (N, 64), before the last ReLU: the Frechet distance supposes Gaussians."""
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 28, 28) in [-1, 1] -> (N, 10) logits"""
        return self.head(self.features(x))


def _convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def to_classifier_input(images: Tensor) -> Tensor:
    """Any images in [-1, 1], (N, 1 or 3, H, W) -> what the network looks at: grey, (N, 1, 28, 28)."""
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise UserError(f"the digit classifier takes grey or RGB images (N, 1 or 3, H, W), not {tuple(images.shape)}")
    grey = tv.rgb_to_grayscale(images) if images.shape[1] == 3 else images
    if grey.shape[-2:] != (SIZE, SIZE):
        grey = tv.resize(grey, [SIZE, SIZE], interpolation=tv.InterpolationMode.BICUBIC, antialias=True)
    return grey.clamp(-1, 1)  # a bicubic curve can overshoot


def load_classifier(path: Path = WEIGHTS) -> Classifier:
    """The shipped network, float32, in evaluation mode."""
    net = Classifier()
    try:
        net.load_state_dict({name: value.float() if value.is_floating_point() else value for name, value in load_file(path).items()})
    except (OSError, SafetensorError, RuntimeError) as problem:
        raise UserError(f"the weights of the digit classifier, {path}, cannot be loaded ({explain(problem)}); "
                        "restore the file from the repository, or train it again: python -m common.evaluate.digit_classifier --data-dir data") from problem  # fmt: skip
    return net.eval()


@torch.no_grad()
def look(net: Classifier, images: Tensor, batch: int = 500) -> tuple[Tensor, Tensor]:
    """Images in [-1, 1] or uint8, (N, C, H, W) -> features (N, 64) and class probabilities (N, 10), both float64."""
    features, probabilities = [], []
    for part in images.split(batch):
        part = to_float(part) if part.dtype == torch.uint8 else part
        seen = net.features(to_classifier_input(part))
        features.append(seen.cpu().double())
        probabilities.append(net.head(seen).cpu().double().softmax(1))
    return torch.cat(features), torch.cat(probabilities)


# ----------------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class Args:
    data_dir: Path = Path("data")
    """Where MNIST is looked for, and where it is downloaded to."""
    epochs: int = 6
    """Passes over the 60,000 training images."""
    batch_size: int = 128
    lr: float = 3e-3
    """Peak learning rate of AdamW; it rises, then falls to zero."""
    seed: int = 0
    out: Path = WEIGHTS
    """Where the weights go."""


def distort(x: Tensor, generator: torch.Generator) -> Tensor:
    """Turn each digit by up to 10 degrees, scale by up to 10 %, shift by up to 2 pixels. (B, 1, 28, 28)"""
    turn, scale, dx, dy = (2 * torch.rand(4, len(x), generator=generator) - 1)  # each (B,) in [-1, 1)
    angle, scale = turn * math.radians(10), 1 + 0.1 * scale
    shift = 2 / (SIZE / 2)  # 2 pixels, where the image reaches from -1 to 1
    rows = [scale * angle.cos(), -scale * angle.sin(), shift * dx, scale * angle.sin(), scale * angle.cos(), shift * dy]
    where = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x + 1, where, align_corners=False) - 1  # outside is 0 there, black here


def accuracy(net: Classifier, pixels: Tensor, labels: Tensor) -> float:
    """Share of the images whose most probable class is the true one."""
    return float((look(net, pixels)[1].argmax(1) == labels).cpu().double().mean())


def train(args: Args) -> Classifier:
    """Cross-entropy on distorted MNIST; everything random follows from the seed."""
    data = load("mnist", SIZE, args.data_dir)
    torch.manual_seed(args.seed)
    net = Classifier()
    steps = args.epochs * (len(data) // args.batch_size)
    optimizer = torch.optim.AdamW(net.parameters(), args.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, steps, pct_start=0.2)
    draw = generator(args.seed)
    bar = tqdm(total=steps, dynamic_ncols=True)
    for _ in range(args.epochs):
        order = torch.randperm(len(data), generator=draw)
        for indices in order[: len(data) // args.batch_size * args.batch_size].split(args.batch_size):
            batch = data.batch(indices)
            loss = F.cross_entropy(net(distort(batch["image"], draw)), batch["label"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.set_postfix({"loss": f"{float(loss):.4f}"}, refresh=False)
            bar.update()
    bar.close()
    return rescale(net.eval(), data.pixels)


@torch.no_grad()
def rescale(net: Classifier, pixels: Tensor) -> Classifier:
    """Give the features a variance near one, so that distances have a natural unit.

    ReLU(x / c) = ReLU(x) / c, so the answers stay what they were; and c is a power of two, so fp16 loses nothing by it.
    """
    c = 2.0 ** round(math.log2(look(net, pixels)[0].std(0).mean()))
    net.body[-1].weight /= c
    net.body[-1].bias /= c
    net.head[-1].weight *= c
    return net


def save_classifier(net: Classifier, path: Path, **metadata: object) -> None:
    weights = {name: value.half() if value.is_floating_point() else value for name, value in net.state_dict().items()}
    text = {"format": "pt"} | {name: str(value) for name, value in metadata.items()}
    write_atomically(path, lambda file: file.write(save(weights, metadata=text)))


def main(args: Args) -> None:
    test = load("mnist", SIZE, args.data_dir, "test")
    began = time.perf_counter()
    net = train(args)
    net.load_state_dict({name: value.half().to(value.dtype) for name, value in net.state_dict().items()})  # as it will be stored
    right = accuracy(net, test.pixels, test.labels)
    print(f"{right:.2%} of the {len(test):,} test images are recognised, after {time.perf_counter() - began:.0f} s of training")
    if right < ACCURACY:
        raise UserError(f"the accuracy {right:.2%} is below the {ACCURACY:.0%} that evaluations need, so the weights are not saved; give more --epochs")
    command = f"python -m common.evaluate.digit_classifier --epochs {args.epochs} --batch-size {args.batch_size} --lr {args.lr} --seed {args.seed}"
    save_classifier(net, args.out, test_accuracy=right, seed=args.seed, command=command, torch=torch.__version__)
    print(args.out)


if __name__ == "__main__":
    run(main, Args)
