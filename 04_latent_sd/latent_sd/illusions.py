"""Visual anagrams (Geng et al. 2024, arXiv 2311.17919) and hybrid images (Geng et al. 2024, arXiv 2404.11615) with the
answers to exercises 12 and 13, and what the creature classifier finds in them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from common import viz
from common.data.creatures.attributes import ATTRIBUTES, NAMES
from common.diffusion.guidance import Guided
from common.diffusion.samplers import ddim, initial_noise
from common.diffusion.schedules import NoiseLevel
from common.errors import UserError
from common.evaluate.creature_classifier import load_creature_classifier, read_attributes
from common.grade.checks import load
from common.models.pipeline import TextToImagePipeline
from common.models.text_to_image_folder import open_latent_pipeline
from common.random import Noise

PARTS = ("ears", "horns", "wings", "tail")  # attributes that a creature has or lacks
FAR = 16  # a picture seen from far away is this many times smaller

Predict = Callable[[Tensor, Tensor], Tensor]


class IllusionSettings(Protocol):
    """What illusions.py asks for; the properties are its flags."""

    @property
    def submission(self) -> Path: ...
    @property
    def model(self) -> Path: ...
    @property
    def upright(self) -> str: ...
    @property
    def turned(self) -> str: ...
    @property
    def near(self) -> str: ...
    @property
    def far(self) -> str: ...
    @property
    def n(self) -> int: ...
    @property
    def guidance(self) -> float: ...
    @property
    def steps(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def out(self) -> Path: ...


def same(x: Tensor) -> Tensor:
    return x


def turn(x: Tensor) -> Tensor:
    """Upside down: half a turn, which undoes itself. (B, C, H, W)"""
    return x.flip(2, 3)


def blur(x: Tensor) -> Tensor:
    """A binomial low-pass filter of 5 x 5. (B, C, h, w)"""
    row = torch.tensor([1.0, 4, 6, 4, 1]) / 16
    kernel = (row[:, None] * row).expand(x.shape[1], 1, 5, 5)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, groups=x.shape[1])


def from_far(x: Tensor) -> Tensor:
    """A picture FAR times smaller, enlarged smoothly: what is left of it at a distance. (B, C, H, W)"""
    return F.interpolate(F.avg_pool2d(x, FAR), scale_factor=float(FAR), mode="bilinear")


@torch.no_grad()
def sample(
    pipeline: TextToImagePipeline, mix: Callable[[Predict, Tensor], Tensor], n: int, w: float, steps: int, seed: int
) -> Tensor:
    """n images by DDIM whose prediction is mix(predict, x), (n, 3, S, S) in [-1, 1].

    predict(x, text) returns v and not eps: v = (eps - sigma x) / alpha has the same views and frequencies as eps, because both
    illusions leave x as it is, and it stays finite where alpha is 0.
    """
    assert pipeline.text_encoder
    empty = pipeline.text_encoder([""])

    def denoise(x: Tensor, level: NoiseLevel[float]) -> tuple[Tensor, Tensor]:
        def predict(x: Tensor, text: Tensor) -> Tensor:
            guided = Guided(
                pipeline.unet.eval(), pipeline.prediction, {"text": text}, {"text": empty}, w, clip_x0=False
            )
            x0, eps = guided(x, level)[:2]
            return level.alpha * eps - level.sigma * x0

        v = mix(predict, x)
        return level.alpha * x - level.sigma * v, level.sigma * x + level.alpha * v

    levels, side = pipeline.schedule.noise_levels(steps), pipeline.unet.cfg.size
    x = initial_noise(levels, (n, pipeline.unet.cfg.in_channels, side, side), Noise(seed, 0))
    *_, last = ddim(denoise, x, levels)
    return pipeline.decode(last.x)


def counts(images: Tensor) -> str:
    """How many of the images have which ears, horns, wings and tail, according to the classifier."""
    found, texts = read_attributes(load_creature_classifier(), images)[0], []
    for name in PARTS:
        numbers = found[:, NAMES.index(name)].bincount(minlength=len(ATTRIBUTES[name])).tolist()
        some = [f"{value} {k}" for value, k in zip(ATTRIBUTES[name], numbers, strict=True) if k and value != "none"]
        texts.append(f"{name}: {', '.join(some) or 'none'}")
    return "; ".join(texts)


def draw_illusions(flags: IllusionSettings) -> None:
    """Draw both illusions, print the counts, and print where the picture is."""
    if not flags.submission.is_file():
        raise UserError(
            f"there is no file {flags.submission}; name the Python file with the answers after --submission"
        )
    answers = load(flags.submission, "submission")
    for name in ("anagram_eps", "hybrid_eps"):
        if not callable(getattr(answers, name, None)):
            raise UserError(f"{flags.submission} has no function {name}")
    pipeline = open_latent_pipeline(flags.model)
    assert pipeline.text_encoder
    encode = pipeline.text_encoder
    with torch.no_grad():
        prompts = (flags.upright, flags.turned, flags.near, flags.far)
        texts = [encode([text]).expand(flags.n, -1, -1) for text in prompts]
    views = [same, turn]

    def draw(mix: Callable[[Predict, Tensor], Tensor]) -> Tensor:
        try:
            return sample(pipeline, mix, flags.n, flags.guidance, flags.steps, flags.seed)
        except NotImplementedError as problem:
            raise UserError(f"{problem} is not solved yet in {flags.submission.name}") from None

    anagram = draw(lambda predict, x: answers.anagram_eps(predict, x, texts[:2], views, views))
    hybrid = draw(lambda predict, x: answers.hybrid_eps(predict, x, texts[2], texts[3], blur))
    alone = draw(lambda predict, x: predict(x, texts[2]))  # what is not due to the second prompt
    print(f"of {flags.n} anagrams, upright ({flags.upright}): {counts(anagram)}")
    print(f"turned ({flags.turned}): {counts(turn(anagram))}")
    print(f"of {flags.n} hybrid images, from near ({flags.near}): {counts(hybrid)}")
    print(f"from far ({flags.far}): {counts(from_far(hybrid))}")
    print(f"of {flags.n} images of {flags.near} alone, from far: {counts(from_far(alone))}")
    rows = ["anagram,\nupright", "anagram,\nturned", "hybrid,\nfrom near", "hybrid,\nfrom far"]
    picture = viz.labelled_grid(torch.cat([anagram, turn(anagram), hybrid, from_far(hybrid)]), flags.n, down=rows)
    print(viz.save_picture(picture, flags.out))
