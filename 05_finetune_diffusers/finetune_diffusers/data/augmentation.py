"""A data set for a DataLoader, with augmentation by torchvision:
flipped, shifted, recoloured, each image in its own way.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from common.data import Images
from common.random import TRAINING, generator


class Augmented(Dataset):
    """augmented[i] -> {"image": (C, S, S) float32 in [-1, 1]}.

    What chance does to image i in an epoch depends on (seed, epoch, i) alone: not on the workers, nor on what was
    drawn before, so that a resumed run sees what an uninterrupted one would have seen. Call set_epoch before each.
    """

    def __init__(self, images: Images, augment: Sequence[str], seed: int):
        self.pixels, self.seed, self.epoch = images.pixels, seed, 0
        self.transform = make_transform(augment, images.size)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            torch.manual_seed(generator(TRAINING, self.seed, self.epoch, i).initial_seed())
            return {"image": self.transform(self.pixels[i])}


def make_transform(augment: Sequence[str], size: int) -> v2.Transform:
    """flip: mirrored or not. crop: shifted by up to a sixteenth, the border mirrored.
    jitter: brightness, contrast, saturation and hue.

    What is done to the training images, the model learns to draw:
    jitter at its full strength would give off-colour samples.
    """
    steps = {
        "flip": v2.RandomHorizontalFlip(),
        "crop": v2.RandomCrop(size, padding=max(1, size // 16), padding_mode="reflect"),
        "jitter": v2.ColorJitter(brightness=0.1, contrast=0.1, saturation=0.1, hue=0.02),
    }
    end = [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5])]  # bytes -> [0, 1] -> [-1, 1]
    return v2.Compose([*(steps[name] for name in steps if name in augment), *end])
