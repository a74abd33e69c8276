"""Small models and short runs that the tests of chapter 6 share. Read only."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from common.diffusion.schedules import make_schedule
from common.models.model_folder import Model, save_model
from common.models.unet import UNet
from common.models.unet_config import small_unet
from helpers import tiny_pipeline
from helpers.chapter_06 import (
    DRAWN,
    TINY_RUN,
    TRAIN_CLIP,
    TRAIN_CONTROLNET,
    TRAIN_DISH,
    TRAIN_INPAINT,
    shaken,
    small_config,
    small_vocab,
    tiny_clip,
)
from helpers.programs import run_main
from helpers.tiny_pipeline import shake, write_tiny_pipeline
from inpaint_gif.clip import formats
from inpaint_gif.clip.formats import CLIPCheckpoint
from inpaint_gif.clip.model import ChineseCLIP, load_clip
from inpaint_gif.clip.name_encoder import open_model
from inpaint_gif.inpainting import backends
from inpaint_gif.training import inpaint


@pytest.fixture(scope="session")
def clip() -> ChineseCLIP:
    return ChineseCLIP(tiny_clip(), "transformers")


@pytest.fixture(scope="session")
def clip_folder(clip, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    formats.save_folder(folder, clip.checkpoint)
    return folder


@pytest.fixture(scope="session")
def sd(tmp_path_factory) -> Path:
    """Chapter 4's folder in small: 64 x 64 pixels, latents 4 x 16 x 16."""
    return write_tiny_pipeline(tmp_path_factory.mktemp("chapter_04") / "model")


@pytest.fixture(scope="session")
def english_sd(tmp_path_factory) -> Path:
    """The same with a vocabulary that was made of English texts, as a published model has it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_pipeline, "WORDS", [text for text in tiny_pipeline.WORDS if text.isascii()])
        return write_tiny_pipeline(tmp_path_factory.mktemp("published") / "model")


@pytest.fixture(scope="session")
def nine(sd, tmp_path_factory) -> Path:
    """An inpainting folder whose every weight matters."""
    return write_inpainting(tmp_path_factory.mktemp("nine"), sd)


@pytest.fixture(scope="session")
def english_nine(english_sd, tmp_path_factory) -> Path:
    """The same, of the model that reads English."""
    return write_inpainting(tmp_path_factory.mktemp("english_nine"), english_sd)


def write_inpainting(folder: Path, of: Path) -> Path:
    begun = open_model(of)
    torch.manual_seed(1)
    wide = inpaint.widened(begun.unet)
    shake(wide)
    inpaint.save_inpaint(folder, replace(begun, unet=wide))
    return folder


@pytest.fixture(scope="session")
def dish_run(sd, clip_folder, tmp_path_factory) -> Path:
    """A run of four steps of train_text2dish.py. Read only."""
    folder = tmp_path_factory.mktemp("text2dish") / "run"
    run_main(
        TRAIN_DISH,
        *TINY_RUN,
        "--n",
        8,
        "--model",
        sd,
        "--clip",
        clip_folder,
        "--backend",
        "transformers",
        "--names",
        "番茄炒蛋",
        "",
        "--out",
        folder,
    )
    return folder


@pytest.fixture(scope="session")
def hole_run(sd, tmp_path_factory) -> Path:
    """A run of four steps of train_inpaint.py. Read only."""
    folder = tmp_path_factory.mktemp("inpaint") / "run"
    run_main(TRAIN_INPAINT, *TINY_RUN, "--n", 4, "--windows", 2, "--model", sd, "--out", folder)
    return folder


@pytest.fixture(scope="session")
def control_run(sd, tmp_path_factory) -> Path:
    """A run of four steps of train_controlnet.py. Read only."""
    folder = tmp_path_factory.mktemp("controlnet") / "run"
    run_main(TRAIN_CONTROLNET, *TINY_RUN, "--n", 3, "--windows", 1, "--model", sd, "--out", folder)
    return folder


@pytest.fixture(scope="session")
def pixel_model(tmp_path_factory) -> Path:
    """An unconditional model of pixels, as chapter 1 trains them."""
    folder = tmp_path_factory.mktemp("pixels")
    torch.manual_seed(0)
    unet = UNet(small_unet(64, 3, (8, 8, 8)))
    shake(unet)
    save_model(folder, Model(unet, make_schedule("cosine"), "v", True))
    return folder


@pytest.fixture(scope="session")
def shipped():
    """What draws, and the CLIP that reads for it and says what it sees."""
    reads = load_clip("pretrained", "transformers")
    return open_model(backends.DEFAULTS["repaint"], clip=reads), reads


@pytest.fixture(scope="session")
def checkpoint() -> CLIPCheckpoint:
    """A model that was never trained, born in transformers."""
    words = small_vocab()
    torch.manual_seed(0)
    net = transformers.ChineseCLIPModel(transformers.ChineseCLIPConfig(**small_config(words).to_transformers()))
    return CLIPCheckpoint(small_config(words), formats.from_transformers(shaken(net).state_dict()), words, "a test")


@pytest.fixture(scope="session")
def checkpoint_folder(checkpoint, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "model"
    formats.save_folder(path, checkpoint)
    return path


@pytest.fixture(scope="session")
def clip_run(tmp_path_factory) -> Path:
    """A run of six steps on twelve drawn dishes. Read only."""
    path = tmp_path_factory.mktemp("chapter_06") / "run"
    run_main(TRAIN_CLIP, *DRAWN, "--steps", 6, "--save-every", 3, "--out", path)
    return path


@pytest.fixture(scope="session")
def images() -> torch.Tensor:
    return torch.rand(5, 3, 40, 40, generator=torch.Generator().manual_seed(1)) * 2 - 1
