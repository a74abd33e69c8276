"""The inpainting backends: nine channels, RePaint, pipelines of diffusers, and their compositing."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline

from common.diffusion.denoiser import Prediction
from common.diffusion.samplers import initial_noise
from common.diffusion.schedules import make_schedule
from common.errors import UserError
from common.models.model_folder import Model, save_model
from common.models.pipeline import SamplingConfig, TextToImagePipeline
from common.models.unet import UNet
from common.models.unet_config import text_unet
from common.random import Noise
from helpers.chapter_06 import QUICK, photograph, right_hole, tiny_clip
from helpers.tiny_pipeline import write_tiny_pipeline
from inpaint_gif.animation.camera import CameraPath, Move, paint
from inpaint_gif.animation.canvas import FilmCanvas
from inpaint_gif.clip.model import ChineseCLIP
from inpaint_gif.clip.name_encoder import open_model
from inpaint_gif.inpainting import backends
from inpaint_gif.inpainting.edge_fill import FILLS
from inpaint_gif.inpainting.repaint import jump_schedule, renoised, repaint

KINDS = [
    "inpaint",
    "repaint of names",
    "repaint of captions",
    "repaint of pixels",
    "controlnet",
    "diffusers",
    "diffusers without a mask",
    "nearest",
    "reflect",
]


@pytest.fixture(scope="module")
def opened(nine, sd, dish_run, pixel_model, control_run, clip):
    """engine(kind, **settings)"""
    models = dict(zip(KINDS, (nine, dish_run, sd, pixel_model, sd, nine, sd, None, None), strict=True))

    def make(kind: str, **settings):
        model = models[kind] and str(models[kind])
        more = {"controlnet": str(control_run)} if kind == "controlnet" else {}
        return backends.open_backend(
            backends.BackendConfig(
                kind.split()[0], model, sampling=QUICK, clip=clip, jump=2, times=2, **more, **settings
            )
        )

    return make


def gaussian_pair(rho: float):
    """The ideal denoiser for two pixels that are standard normal with this correlation."""
    covariance = torch.tensor([[1.0, rho], [rho, 1.0]])

    def denoise(x, level):
        gain = level.alpha * covariance @ torch.linalg.inv(level.alpha**2 * covariance + level.sigma**2 * torch.eye(2))
        x0 = (x.flatten(1) @ gain.T).view(x.shape)
        return Prediction(x0, (x - level.alpha * x0) / level.sigma)

    return denoise


def write_other(folder: Path) -> str:
    """A Stable Diffusion folder of other widths."""
    write_tiny_pipeline(folder)
    unet = UNet(text_unet(16, 4, (8, 32), text_dim=32))
    save_model(folder, Model(unet, make_schedule("cosine"), "v", False))
    return str(folder)


def test_the_nine_channels_paint_what_diffusers_paints(nine):
    """StableDiffusionInpaintPipeline, from the same noise, to the picture.
    Its encoder draws latents: here from a cloud without width.
    """
    pipe = StableDiffusionInpaintPipeline.from_pretrained(nine)
    pipe.set_progress_bar_config(disable=True)
    ours = open_model(nine)
    c = ours.vae.cfg.latent_channels
    with torch.no_grad():
        for conv in (pipe.vae.quant_conv, ours.vae.quant_conv):
            conv.weight[c:], conv.bias[c:] = 0.0, -30.0
    image, mask, prompt, how = (
        photograph(),
        right_hole(columns=18),
        "番茄炒蛋",
        SamplingConfig(guidance_scale=3.0, sampler="ddim:4", negative_prompt="米饭"),
    )
    noise = initial_noise(ours.noise_levels(how), (1, c, 16, 16), Noise(5))
    theirs = (
        pipe(
            prompt,
            image=(image[None] + 1) / 2,
            mask_image=mask[None],
            height=64,
            width=64,
            strength=1.0,
            num_inference_steps=4,
            guidance_scale=3.0,
            negative_prompt="米饭",
            latents=noise,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        ).images[0]
        * 2
        - 1
    )
    painted = backends.InpaintBackend(ours, how)(image, mask, prompt, 5)
    torch.testing.assert_close(painted, theirs, atol=2e-4, rtol=0)
    assert painted.std() > 0.05
    for other in (
        backends.InpaintBackend(ours, how)(photograph(1), mask, prompt, 5),
        backends.InpaintBackend(ours, how)(image, right_hole(columns=30), prompt, 5),
    ):
        assert (other - painted).abs().max() > 1e-3  # picture and mask matter


def test_the_walk_goes_back():
    assert jump_schedule(4, 2, 2) == [0, 1, 2, 0, 1, 2, 3, 4, 2, 3, 4]
    assert jump_schedule(5, 2, 1) == [0, 1, 2, 3, 4, 5]
    way = jump_schedule(20, 5, 4)
    assert way[0] == 0 and way[-1] == 20 and sum(b > a for a, b in zip(way, way[1:], strict=False)) == 4 * 20
    assert all(b - a in (1, -5) for a, b in zip(way, way[1:], strict=False))
    with pytest.raises(UserError, match="at least 1"):
        jump_schedule(4, 0, 2)


def test_repaint_draws_what_goes_with_the_known():
    """One of two pixels is known to be 1.5: the other is then normal with mean 1.5 rho and variance 1 - rho^2."""
    rho, n, path = 0.9, 3000, make_schedule("cosine").noise_levels(30)
    known, mask = torch.tensor([1.5, 0.0]).expand(n, 1, 1, 2), torch.tensor([0.0, 1.0]).expand(n, 1, 1, 2)
    error = {}
    for times in (1, 6):
        *_, last = repaint(
            gaussian_pair(rho),
            torch.randn(n, 1, 1, 2, generator=torch.Generator().manual_seed(0)),
            path,
            known,
            mask,
            Noise(1),
            5,
            times,
        )
        assert torch.equal(last.x[..., 0], known[..., 0])  # to the last bit
        other = last.x[..., 1]
        error[times] = abs(float(other.mean()) - 1.5 * rho)
        deviation = float(other.std())
    assert error[6] < 0.1 < error[1]  # once is pasting: the hole knew too little of what lies around it
    assert deviation == pytest.approx(math.sqrt(1 - rho**2), rel=0.2)


def test_back_to_noise_is_where_the_schedule_says():
    schedule, x0 = make_schedule("cosine"), torch.full((20000,), 0.7)
    now, then = (next(iter(schedule.noise_levels(10).after(k))) for k in (8, 3))
    x = now.alpha * x0 + now.sigma * torch.randn(20000)
    back = renoised(x, now, then, torch.randn(20000))
    assert float(back.mean()) == pytest.approx(then.alpha * 0.7, abs=0.03) and float(back.std()) == pytest.approx(
        then.sigma, rel=0.03
    )


def test_a_latent_is_missing_if_any_of_its_pixels_is():
    mask = torch.zeros(1, 16, 16)
    mask[:, 0, 5] = 1
    hole = backends.latent_hole(mask, 4)
    assert hole.shape == (1, 1, 4, 4) and hole.sum() == 1 and hole[0, 0, 0, 1] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_engine_leaves_known_pixels_as_they_are(kind, opened):
    """Through a chain of moves: at each keyframe what was seen is there to the last bit,
    and all the rest is painted.
    """
    engine, picture = opened(kind), photograph()
    way = CameraPath.plan(Move.parse("up-right:1,zoom-out:1"), 64, 64)
    plane = FilmCanvas(picture)
    frames = list(paint(plane, way, engine, "番茄炒蛋", seed=3))
    assert len(frames) >= 3 and sum(k.new > 0 for k in frames) >= 2
    for k in frames:
        known = (k.mask == 0).expand_as(k.image)
        assert torch.equal(k.image[known], k.moved[known]) and k.image.isfinite().all() and k.image.abs().max() <= 1
    again = list(paint(FilmCanvas(picture), way, engine, "番茄炒蛋", seed=3))
    assert all(torch.equal(a.image, b.image) for a, b in zip(frames, again, strict=True))
    if kind not in FILLS:
        other = list(paint(FilmCanvas(picture), way, engine, "番茄炒蛋", seed=4))
        assert not torch.equal(frames[0].image, other[0].image)


def test_a_picture_of_the_other_kind_is_refused(opened):
    """A model of grey pictures, say, and a dish in colours."""
    for kind in ("inpaint", "repaint of pixels"):
        with pytest.raises(
            UserError,
            match=r"this model paints pictures with three channels \(colour\), and the picture has one channel \(grey\)",
        ):
            opened(kind)(photograph()[:1], right_hole(), "", 0)


@pytest.mark.parametrize("settings", [{"crop": 4}, {"blur": 0.0}, {"blur": 6.0}])
def test_crops_and_blurs_leave_known_pixels_too(settings, opened):
    engine, image, mask = opened("inpaint", **settings), photograph(), torch.zeros(1, 64, 64)
    mask[:, 48:, 48:] = 1  # a corner: the surroundings of what reaches from edge to edge would be all there is
    painted = engine(image, mask, "番茄炒蛋", 0)
    assert torch.equal(painted[(mask == 0).expand_as(image)], image[(mask == 0).expand_as(image)])
    assert not torch.equal(painted, opened("inpaint")(image, mask, "番茄炒蛋", 0))


def test_other_sizes_are_painted_at_the_engines_own(opened):
    told = []

    def engine(image, mask, prompt, seed):
        told.append(tuple(image.shape))
        return torch.zeros_like(image)

    joined = backends.CompositedBackend(engine, native=64, blur=0, match=False)
    image, mask = photograph(size=96), right_hole(96, 30)
    painted = joined(image, mask, "", 0)
    assert told == [(3, 64, 64)] and painted.shape == image.shape
    assert torch.equal(painted[:, :, :66], image[:, :, :66]) and painted[:, :, 66:].abs().max() < 1e-6
    whole = backends.CompositedBackend(engine, native=None)(image, torch.ones(1, 96, 96), "", 0)
    assert told[-1] == (3, 96, 96) and not whole.any()


@pytest.mark.parametrize("settings", [{"native": 64}, {"native": 32}, {"native": 64, "crop": 8}])
def test_colours_are_matched_at_whatever_size_is_painted(settings):
    """An engine that paints everything darker is put right along the edge,
    also where its picture comes back through another size.
    """
    image, mask = torch.full((3, 64, 64), 0.5), right_hole()
    darker = lambda image, mask, prompt, seed: torch.full_like(image, 0.1)  # noqa: E731
    plain, matched = (
        backends.CompositedBackend(darker, **settings, blur=0, match=match)(image, mask, "", 0)
        for match in (False, True)
    )
    assert plain[:, :, 48:].sub(0.1).abs().max() < 1e-3
    assert matched[:, :, 48].sub(0.5).abs().max() < 0.1 and torch.equal(matched[:, :, :48], image[:, :, :48])


def test_repaint_walks_a_short_way_again_too(dish_run, clip, monkeypatch):
    """Fewer steps than --jump: the whole way is walked --resample times."""
    drawer, seen = open_model(dish_run, clip=clip), []
    engine = backends.RepaintBackend(drawer, SamplingConfig(guidance_scale=1.0, sampler="ddpm:3"), jump=5, times=2)
    inner = TextToImagePipeline.guided

    def watched(self, prompts, config):
        denoise = inner(self, prompts, config)
        return lambda x, level: seen.append(level) or denoise(x, level)

    monkeypatch.setattr(TextToImagePipeline, "guided", watched)
    engine(photograph(), right_hole(), "米饭", 0)
    assert len(seen) == 6


def test_a_softened_edge_begins_with_the_colours_next_to_it():
    white = lambda image, mask, prompt, seed: torch.ones_like(image)  # noqa: E731
    image, mask = torch.full((3, 64, 64), -1.0), right_hole()
    hard, soft = (
        backends.CompositedBackend(white, blur=blur, match=False)(image, mask, "", 0)[0, 32] for blur in (0.0, 3.0)
    )
    assert hard[48] == 1 and torch.equal(soft[:48], hard[:48]) and soft[48] == pytest.approx(-0.5) and soft[52] == 1


def test_wrong_models_are_refused(nine, sd, dish_run, control_run, clip, tmp_path, monkeypatch):
    """Each with one sentence."""

    def refused(sentence: str, *settings, **more) -> None:
        with pytest.raises(UserError, match=sentence) as caught:
            backends.open_backend(backends.BackendConfig(*settings, **more))
        assert "\n" not in str(caught.value)

    refused("takes no mask .* --engine repaint", "inpaint", str(sd))
    refused("paint into holes .* --engine inpaint", "repaint", str(nine))
    refused("there is no folder nowhere", "inpaint", "nowhere")
    refused("holds no model", "inpaint", str(tmp_path))
    refused("needs --model", "diffusers")
    refused("has no network", "reflect", str(sd))
    refused("has no ControlNet; leave out", "reflect", None, str(control_run))
    refused("no ControlNet of diffusers: there is no .*config.json", "controlnet", str(sd), str(tmp_path))
    refused(
        "does not fit this model: its block_out_channels",
        "controlnet",
        write_other(tmp_path / "wide"),
        str(control_run),
    )
    refused("unknown engine", "magic")
    refused("0 or more", "reflect", crop=-1)
    refused("holds no pipeline: model_index.json is missing", "diffusers", str(tmp_path))
    refused(
        "no scheduler for the sampler dpmpp_2s; choose a --sampler of ddim",
        "diffusers",
        str(nine),
        sampling=SamplingConfig(sampler="dpmpp_2s:4"),
    )
    for steps in (0, 1001):
        refused(
            f"--sampler ddim:{steps} must take 1 to 1000 steps with the model in",
            "diffusers",
            str(nine),
            sampling=SamplingConfig(sampler=f"ddim:{steps}"),
        )
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    refused("not in the hub's cache, and http://127.0.0.1:9 did not answer", "diffusers", "nobody/nothing")
    monkeypatch.setitem(backends.DEFAULTS, "inpaint", tmp_path / "missing")
    refused("missing is missing; give the network .* --engine reflect", "inpaint")
    refused("trained with another CLIP", "repaint", str(dish_run), clip=ChineseCLIP(tiny_clip(seed=1), "transformers"))
    refused(
        "vectors of 24 numbers, but this CLIP .* gives 16",
        "repaint",
        str(dish_run),
        clip=ChineseCLIP(tiny_clip(16), "transformers"),
    )

    def changed(source: Path, part: str, **values) -> str:
        folder = tmp_path / f"copy{len(list(tmp_path.iterdir()))}"
        shutil.copytree(source, folder)
        config = json.loads((folder / part / "config.json").read_text())
        (folder / part / "config.json").write_text(json.dumps(config | values))
        return str(folder)

    refused("weights of another architecture: .*conv_in.weight", "inpaint", changed(nine, "unet", in_channels=7))
    refused("weights of another architecture", "inpaint", changed(nine, "unet", block_out_channels=[16, 64]))
    refused("weights of another architecture", "inpaint", changed(nine, "vae", latent_channels=8))
    shutil.copytree(sd, tmp_path / "mute")
    shutil.rmtree(tmp_path / "mute" / "text_encoder")
    refused("holds no text encoder", "repaint", str(tmp_path / "mute"))
