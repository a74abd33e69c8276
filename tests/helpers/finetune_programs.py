"""What the tests of chapter 5 share: its programs, flags that make them quick, and small functions."""

import csv
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from finetune_diffusers.images import to_tensor
from helpers.programs import ROOT

HERE = "05_finetune_diffusers"
GENERATE, RESTORE, TRAIN, PACKAGE = (
    f"{HERE}/{name}.py" for name in ("generate", "restore", "train_unconditional", "ddpm_package")
)
STRENGTH, WEIGHTS, RUNS = (f"{HERE}/studies/{name}.py" for name in ("strength", "prompt_weighting", "runs"))
FINETUNE, LORA, DREAMBOOTH, CONTROLNET = (
    f"{HERE}/{name}.py" for name in ("finetune", "lora", "dreambooth", "controlnet")
)
PROMPT = "a red creature with wings"
MNIST = ROOT / "01_ddpm_mnist" / "pretrained"
FEW = [
    "--size",
    32,
    "--batch-size",
    2,
    "--steps",
    4,
    "--save-every",
    2,
    "--sample-every",
    3,
    "--sample-steps",
    1,
    "--device",
    "cpu",
    "--precision",
    "no",
]
UNET = "unet/diffusion_pytorch_model.safetensors"
TINY = [*FEW, "--n", 6, "--measure", 2, "--lr", 1e-2]


def silent(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def pixels(path: Path) -> torch.Tensor:
    return to_tensor(Image.open(path))


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def rows(run: Path) -> list[dict[str, str]]:
    return table(run / "metrics.csv")


def refused(result: tuple[int, str, str]) -> str:
    """The message of a program that refused its flags."""
    code, _, err = result
    assert code == 2 and err.splitlines()[-1].startswith("error: ") and "Traceback" not in err, result
    return err


def plain(folder: Path) -> StableDiffusionPipeline:
    """The model as plain diffusers opens it."""
    return StableDiffusionPipeline.from_pretrained(folder)


def draw(pipe, **more) -> np.ndarray:
    """One small picture of a prompt, always from the same noise."""
    silent(pipe)
    generator = torch.Generator().manual_seed(1)
    return pipe(
        "a red creature", height=32, width=32, num_inference_steps=2, generator=generator, output_type="np", **more
    ).images
