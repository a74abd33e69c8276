"""Models and runs that the tests of chapter 5 share. All are read only, but for `copy`."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.io.files import read_json, write_json
from helpers.finetune_programs import CONTROLNET, DREAMBOOTH, FEW, FINETUNE, LORA, TINY
from helpers.programs import run_main
from helpers.tiny_pipeline import write_tiny_pipeline


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """Read only."""
    return write_tiny_pipeline(tmp_path_factory.mktemp("use") / "model")


@pytest.fixture
def copy(model, tmp_path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "copy"))


@pytest.fixture(scope="session")
def inpainter(model, tmp_path_factory) -> Path:
    """The same model with an inpainting U-Net: nine channels in."""
    folder = Path(shutil.copytree(model, tmp_path_factory.mktemp("nine") / "inpainter"))
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    state["conv_in.weight"] = torch.cat([state["conv_in.weight"], 0.1 * torch.randn(16, 5, 3, 3)], 1)
    save_file(state, weights, metadata={"format": "pt"})
    write_json(folder / "unet" / "config.json", read_json(folder / "unet" / "config.json") | {"in_channels": 9})
    write_json(
        folder / "model_index.json",
        read_json(folder / "model_index.json") | {"_class_name": "StableDiffusionInpaintPipeline"},
    )
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    return write_tiny_pipeline(tmp_path_factory.mktemp("chapter_05") / "base")


@pytest.fixture(scope="session")
def tuned(base) -> Path:
    """A run of finetune.py. Read only."""
    run_main(
        FINETUNE,
        *TINY,
        "--model",
        base,
        "--gradient-accumulation",
        2,
        "--prompts",
        "a red creature",
        "--out",
        base.parent / "tuned",
    )
    return base.parent / "tuned"


@pytest.fixture(scope="session")
def adapted(base) -> Path:
    """A run of lora.py. Read only."""
    run_main(
        LORA, *TINY, "--model", base, "--rank", 4, "--prompts", "a red creature", "--out", base.parent / "adapted"
    )
    return base.parent / "adapted"


@pytest.fixture(scope="session")
def controlled(base) -> Path:
    """A run of controlnet.py. Read only."""
    run_main(CONTROLNET, *TINY, "--model", base, "--out", base.parent / "controlled")
    return base.parent / "controlled"


@pytest.fixture(scope="session")
def dreamt(base) -> Path:
    """A run of dreambooth.py. Read only."""
    flags = ["--model", base, "--poses", 3, "--class-images", 4, "--measure", 2, "--lr", 1e-3]
    run_main(DREAMBOOTH, *FEW, *flags, "--prompts", "a {}", "a {kind}", "--out", base.parent / "dreamt")
    return base.parent / "dreamt"
