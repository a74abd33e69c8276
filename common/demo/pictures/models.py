"""The shipped models, opened once, and the packages of the chapters.

Nothing in `common` imports a chapter. The demo is a program above the chapters, as a browser of the whole course, so it
loads their packages by name while it runs, and nothing imports the demo.
"""

import importlib
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

from common.errors import UserError
from common.evaluate.creature_classifier import CreatureClassifier, load_creature_classifier
from common.models.model_folder import Model, load_model
from common.models.pipeline import TextToImagePipeline
from common.models.text_to_image_folder import open_latent_pipeline

COURSE = Path(__file__).resolve().parents[3]
DIGITS, CREATURES = COURSE / "01_ddpm_mnist" / "pretrained", COURSE / "04_latent_sd" / "pretrained"
RESTORATION, FILMS = COURSE / "05_finetune_diffusers", COURSE / "06_inpaint_gif"


def chapter_module(chapter: Path, name: str) -> ModuleType:
    """A module of a chapter's package: chapter_module(FILMS, "inpaint_gif.animation.camera")."""
    if not chapter.is_dir():
        raise UserError(f"{chapter} is missing; run the demo in the folder of the whole course")
    if str(chapter) not in sys.path:
        sys.path.append(str(chapter))
    return importlib.import_module(name)


@cache
def digit_model() -> Model:
    return load_model(DIGITS)


@cache
def creature_pipeline() -> TextToImagePipeline:
    """Chapter 4's small Stable Diffusion, which knows creatures and dishes."""
    return open_latent_pipeline(CREATURES)


@cache
def creature_classifier() -> CreatureClassifier:
    return load_creature_classifier()
