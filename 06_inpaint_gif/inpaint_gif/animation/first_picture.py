"""The first picture of a film: a given image, or the best of several candidates that a model draws of the dish.

The model is one of this course, which gets the Chinese name, or a published one, which gets the English name. In both
cases a Chinese CLIP compares the candidates with the Chinese name.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from torch import Tensor

from common.data.dishes.captions import names_of
from common.data.sources.decoding import decode_all
from common.io.pixels import to_float
from common.models.pipeline import SamplingConfig, TextToImagePipeline
from inpaint_gif.animation.flags import FilmFlags
from inpaint_gif.clip.dish_names import CHINESE, DishQuery, dish_of, parse_dish_name
from inpaint_gif.clip.model import ChineseCLIP, load_clip
from inpaint_gif.clip.name_encoder import load_clip_for, open_dish_model
from inpaint_gif.inpainting.backends import DEFAULTS
from inpaint_gif.inpainting.compositing import resized
from inpaint_gif.inpainting.published import PUBLISHED_GUIDANCE, is_published, open_published, reads_english_only

GUIDANCE = 3.0  # of the models of this course


class DishModel(Protocol):
    """Draws one picture for each prompt."""

    @property
    def size(self) -> int: ...

    def __call__(self, prompts: list[str]) -> Tensor: ...  # (N, C, S, S) in [-1, 1]


@dataclass(frozen=True)
class CourseModel:
    """A model of train_text2dish.py."""

    pipeline: TextToImagePipeline
    config: SamplingConfig

    @property
    def size(self) -> int:
        return self.pipeline.size

    def __call__(self, prompts: list[str]) -> Tensor:
        return self.pipeline.txt2img(prompts, self.config)


@dataclass(frozen=True)
class DishModels:
    """The opened models of the first picture; None for those that are not needed.

    prompt  for the dish_model: the Chinese name, or the English one of a published model
    """

    query: DishQuery | None
    clip: ChineseCLIP | None
    dish_model: DishModel | None = None
    prompt: str = ""


def load_models(flags: FilmFlags) -> DishModels:
    """Open the CLIP and the model that draws. With --image, only RePaint with a model of text2dish needs a CLIP."""
    if flags.image:
        clip = None
        if flags.chosen_engine == "repaint" and not flags.model:
            clip = load_clip_for(DEFAULTS["repaint"], flags.device, flags.clip, flags.backend)
        elif flags.clip:
            clip = load_clip(flags.clip, flags.backend, flags.device)
        return DishModels(parse_dish_name(clip, flags.name) if clip else None, clip)
    sampling = SamplingConfig(
        GUIDANCE if flags.guidance is None else flags.guidance, sampler=flags.sampler, seed=flags.seed
    )
    if flags.dish and is_published(flags.dish):
        return load_published(flags, flags.dish, sampling)
    folder = Path(flags.dish).expanduser() if flags.dish else DEFAULTS["repaint"]
    clip, pipeline = open_dish_model(folder, flags.device, flags.clip, flags.backend, ", or begin with --image")
    query = parse_dish_name(clip, flags.name)
    return DishModels(query, clip, CourseModel(pipeline, sampling), flags.dish_prompt or query.name)


def load_published(flags: FilmFlags, model: str, sampling: SamplingConfig) -> DishModels:
    """A published model that draws, and the CLIP that chooses among its pictures."""
    clip = load_clip(flags.clip or "pretrained", flags.backend, flags.device)
    query, in_english = parse_dish_name(clip, flags.name), reads_english_only(model)
    if in_english and flags.guidance is None:
        sampling = replace(sampling, guidance_scale=PUBLISHED_GUIDANCE)
    prompt = flags.dish_prompt or (english_name(query, query.name) if in_english else query.name)
    if in_english and CHINESE.search(prompt):
        print(
            f"note: {model} reads English, and {prompt} has no English name here; give --dish-prompt", file=sys.stderr
        )
    if not flags.clip:
        print(
            "note: the shipped CLIP has learned from drawn dishes; for photographs choose with --clip ViT-B-16",
            file=sys.stderr,
        )
    return DishModels(query, clip, open_published(model, sampling, flags.device), prompt)


def english_name(query: DishQuery | None, name: str) -> str:
    """The English name of a dish of the menu; any other name as it is."""
    dish = query.dish if query else dish_of(name)
    return names_of(dish, "en")[0] if dish else name


def first_picture(flags: FilmFlags, models: DishModels, size: int) -> Tensor:
    """The given image, or the drawn candidate whose CLIP embedding is nearest to the name.
    (C, size, size) in [-1, 1]
    """
    if models.dish_model is None or models.clip is None or models.query is None:
        pixels, _ = decode_all([flags.image], size, channels=3)
        return to_float(pixels[0])
    name, own = models.query.name, models.dish_model.size
    drawn = models.dish_model([models.prompt] * flags.candidates)
    cosines = models.clip.encode_image(drawn) @ models.clip.encode_text([name])[0]
    best = int(cosines.argmax())
    asked = f" (prompt: {models.prompt})" if models.prompt != name else ""
    print(
        f"{name}{asked}: picture {best + 1} of {len(drawn)}, cosine {float(cosines[best]):.2f} of "
        f"{float(cosines.min()):.2f} to {float(cosines.max()):.2f}"
        + (f", enlarged to {size} x {size}" if size > own else "")
    )
    return resized(drawn[best], (size, size))
