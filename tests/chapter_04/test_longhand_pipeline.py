"""Chapter 4's pipeline is written out; the programs use the one of common/models/pipeline.py.
Both draw equal images.
"""

import dataclasses

import pytest
import torch

from common.diffusion.schedules import make_schedule
from common.models.pipeline import SamplingConfig, TextToImagePipeline, last_levels
from common.models.text.encoders import small_text
from common.models.unet import UNet
from common.models.unet_config import text_unet
from common.models.vae import AutoencoderKL, small_vae
from helpers.programs import ROOT
from latent_sd import pipeline as longhand

PROMPTS = ["a red creature with wings", "一盘番茄炒蛋，木桌", ""]
CONFIGS = {
    "default": SamplingConfig(sampler="dpmpp_2m:4"),
    "without guidance": SamplingConfig(1.0, sampler="ddim:3"),
    "negative prompt": SamplingConfig(7.5, "a plate of fish", "ddim:3:eta=0.5", seed=3),
    "rescale": SamplingConfig(4.0, rescale=0.7, sampler="heun:3"),
    "interval": SamplingConfig(4.0, interval=(0.3, 5.0), sampler="euler_a:4", seed=9),
    "another size": SamplingConfig(3.0, sampler="ddpm:4", size=24),
    "changing scale": SamplingConfig(lambda level: 1 + level.sigma, sampler="ddim:3"),
}


@pytest.fixture(scope="module")
def both() -> tuple[longhand.LatentDiffusion, TextToImagePipeline]:
    torch.manual_seed(0)
    vae = AutoencoderKL(dataclasses.replace(small_vae(16, 3, (8, 16)), scaling_factor=1.7)).eval()
    unet, encoder = (
        UNet(text_unet(8, 4, (8, 16), 32)).eval(),
        small_text(2 * PROMPTS[:2], dim=32, heads=1, length=24).eval(),
    )
    schedule = make_schedule("cosine")
    return longhand.LatentDiffusion(vae, unet, schedule, "v", encoder), TextToImagePipeline(
        unet, schedule, "v", encoder, vae
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_equal_images_from_text(name, both):
    ours, commons = both
    assert torch.equal(ours.txt2img(PROMPTS, CONFIGS[name]), commons.txt2img(PROMPTS, CONFIGS[name]))


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "another size"])
@pytest.mark.parametrize("strength", [0.4, 0.75, 1.0])
def test_equal_images_from_an_image(name, strength, both):
    ours, commons = both
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    for given in (images, images[:1]):
        assert torch.equal(
            ours.img2img(given, PROMPTS, strength, CONFIGS[name]),
            commons.img2img(given, PROMPTS, strength, CONFIGS[name]),
        )


def test_equal_images_from_given_latents_and_noise(both):
    ours, commons = both
    given = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    assert torch.equal(
        ours.txt2img(PROMPTS, CONFIGS["default"], latents=given),
        commons.txt2img(PROMPTS, CONFIGS["default"], latents=given),
    )
    images = torch.zeros(1, 3, 16, 16)
    assert torch.equal(
        ours.img2img(images, PROMPTS, 0.5, CONFIGS["default"], noise=given),
        commons.img2img(images, PROMPTS, 0.5, CONFIGS["default"], noise=given),
    )


def test_equal_latents_sizes_and_levels(both):
    ours, commons = both
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(ours.encode(images), commons.encode(images)) and ours.size == commons.size == 16
    levels = commons.schedule.noise_levels(10)
    for strength in (0.06, 0.3, 0.58, 1.0):
        assert list(longhand.last_levels(levels, strength)) == list(last_levels(levels, strength))


def test_the_shipped_model_opens():
    assert longhand.open_latent_diffusion(ROOT / "04_latent_sd" / "pretrained").size == 128
