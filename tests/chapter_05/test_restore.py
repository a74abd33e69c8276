"""restore.py: degradations, repairs and how they are measured."""

import math

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from PIL import Image

from common.data import load
from common.io.pixels import to_float
from finetune_diffusers import models, restoration
from finetune_diffusers.data import degradations
from finetune_diffusers.data.degradations import Degradation
from finetune_diffusers.evaluation import metrics
from finetune_diffusers.images import to_pil
from finetune_diffusers.restoration import DamagedImages, RepairSettings
from finetune_diffusers.schedulers import use_scheduler
from helpers.finetune_programs import PROMPT, RESTORE, refused, silent, table


def test_damages():
    torch.manual_seed(0)
    images = torch.rand(2, 3, 20, 28) * 2 - 1
    mask = Degradation("mosaic", fraction=0.5).mask(2, 20, 28)
    assert mask.mean() == pytest.approx(0.25) and mask[0, 0, 5:15, 7:21].all()
    tiles = degradations.mosaic(images, 8)
    assert tiles[:, :, 8:16, 8:16].flatten(2).std(2).max() < 1e-6
    torch.testing.assert_close(tiles[:, :, 9, 9], images[:, :, 8:16, 8:16].mean((2, 3)))
    # the smaller blocks of the edge
    torch.testing.assert_close(tiles[:, :, 17, 25], images[:, :, 16:, 24:].mean((2, 3)))
    for kind in ("mosaic", "noise", "scratch"):
        degradation = Degradation(kind, fraction=0.5, noise=0.3, scratches=3)
        mask = degradation.mask(2, 20, 28)
        worse = degradation.corrupt(images, mask)
        assert torch.equal(worse[(mask == 0).expand_as(worse)], images[(mask == 0).expand_as(worse)])
        assert (worse - images).abs().mean() > 0.01
    assert not torch.equal(mask[0], mask[1]) and 0 < mask.mean() < 0.5
    flat = torch.zeros(1, 3, 64, 64)
    assert Degradation("noise", noise=0.3).corrupt(flat, torch.ones(1, 1, 64, 64)).std() == pytest.approx(
        0.3, rel=0.05
    )


def test_classical_repairs():
    slope = torch.linspace(-0.8, 0.8, 32).expand(1, 3, 32, 32)
    for kind in ("mosaic", "scratch"):
        degradation = Degradation(kind, fraction=1.0, scratches=4)
        mask = degradation.mask(1, 32, 32)
        worse = degradation.corrupt(slope, mask)
        better = degradation.classical_repair(worse, mask)
        assert (better - slope).square().mean() < 0.2 * (worse - slope).square().mean()
        assert torch.equal(better[(mask == 0).expand_as(better)], slope[(mask == 0).expand_as(better)])
    degradation, everywhere = Degradation("noise", noise=0.3), torch.ones(1, 1, 32, 32)
    noisy = degradation.corrupt(slope, everywhere)
    assert (degradation.classical_repair(noisy, everywhere) - slope).square().mean() < 0.4 * (
        noisy - slope
    ).square().mean()


def test_a_thin_scratch_reaches_the_latents():
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 3, :] = mask[..., :, 62] = 1
    grown = degradations.grow_to_blocks(mask, 4)
    small = torch.nn.functional.interpolate(grown, (16, 16))  # as diffusers does
    assert small[0, 0, 0].all() and small[0, 0, :, 15].all() and small.sum() == 31
    assert torch.nn.functional.interpolate(mask, (16, 16)).sum() < 31  # the bare mask would have missed them
    assert ((grown - mask) >= 0).all()


def work(n: int = 2, kind: str = "mosaic"):
    truth = to_float(load("creatures", 64, split="test", n=n).pixels)
    degradation = Degradation(kind, fraction=0.5, scratches=4)
    mask = degradation.mask(n, 64, 64)
    return DamagedImages(degradation.corrupt(truth, mask), mask, [PROMPT] * n, truth)


@pytest.mark.parametrize("method", ["img2img", "inpaint"])
def test_known_pixels_are_exactly_what_they_were(model, method):
    pipe, jobs = silent(models.open_pipeline(model, "inpaint")), work(2, "scratch")
    use_scheduler(pipe, "ddim")
    done = restoration.repair(pipe, jobs, RepairSettings(method, 0.5, 2.0, 4), "ddim", seed=3)
    known = (jobs.mask == 0).expand_as(done)
    assert torch.equal(done[known], jobs.damaged[known])
    assert (done - jobs.damaged)[~known].abs().mean() > 0.1
    one = restoration.repair(
        pipe, DamagedImages(*(part[1:] for part in jobs)), RepairSettings(method, 0.5, 2.0, 4), "ddim", seed=4
    )
    torch.testing.assert_close(one[0], done[1], atol=2e-4, rtol=0)  # each has a seed of its own


def test_inpainting_looks_at_the_rest_of_the_picture(model):
    """Under the mask it draws something else where the surroundings differ;
    and outside it would have changed nothing by itself.
    """
    pipe, jobs = silent(models.open_pipeline(model, "inpaint")), work(1)
    how = RepairSettings("inpaint", 1.0, 1.0, 4)
    other = jobs._replace(damaged=torch.where(jobs.mask > 0, jobs.damaged, -jobs.damaged))
    a, b = (restoration.repair(pipe, each, how, "ddim", seed=0) for each in (jobs, other))
    inside = (jobs.mask > 0).expand_as(a)
    assert (a - b)[inside].abs().mean() > 0.01


def test_chaining_in_latent_space(model):
    """The second pipeline takes the first one's latents as they are: nothing is decoded or encoded in between."""
    pipe, jobs = silent(models.open_pipeline(model, "inpaint")), work(1)
    jobs = jobs._replace(mask=torch.ones_like(jobs.mask))
    use_scheduler(pipe, "ddim")
    how = RepairSettings("img2img", 0.5, 2.0, 4)
    latents = restoration.repair_to_latents(pipe, jobs, how, "ddim", seed=0)
    assert latents.shape == (1, 4, 16, 16)
    with torch.no_grad():
        decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample.clamp(-1, 1)
    torch.testing.assert_close(decoded, restoration.repair(pipe, jobs, how, "ddim", seed=0), atol=1e-4, rtol=0)
    chained = restoration.repair(pipe, jobs, how, "ddim", seed=1, start=latents)
    plain = silent(StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False))
    theirs = plain(
        PROMPT,
        image=latents,
        strength=0.5,
        guidance_scale=2.0,
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(1),
        output_type="pt",
    ).images
    torch.testing.assert_close(chained, 2 * theirs - 1, atol=1e-4, rtol=0)
    assert metrics.rms_distance(chained, restoration.repair(pipe, jobs, how, "ddim", seed=1, start=decoded)) > 0.02


def test_restore_from_the_command_line(model, tmp_path, command_line):
    code, out, _ = command_line(
        RESTORE,
        "--model",
        model,
        "--n",
        2,
        "--strength",
        0.5,
        1,
        "--guidance",
        1,
        2,
        "--steps",
        2,
        "--device",
        "cpu",
        "--out",
        tmp_path,
    )
    assert (
        code == 0
        and "img2img, 2 steps: PSNR" in out
        and "inpaint, 2 steps: SSIM" in out
        and "PSNR against classical" in out
        and "two, by latents" in out
    )
    rows = table(tmp_path / "study.csv")
    assert [row["method"] for row in rows] == ["damaged", "classical", "through the autoencoder"] + ["img2img"] * 4 + [
        "inpaint"
    ] * 4
    jobs = work(2)
    damaged = Degradation().corrupt(jobs.truth, Degradation().mask(2, 64, 64))
    error = 10 * torch.log10(4 / (damaged - jobs.truth).square().flatten(1).mean(1))
    assert float(rows[0]["psnr"]) == pytest.approx(float(error.mean()), abs=1e-3)
    assert float(rows[0]["psnr_error"]) == pytest.approx(float(error.std() / math.sqrt(2)), abs=1e-3)
    assert float(rows[0]["moved"]) == 0 and all(float(row["moved"]) > 0 for row in rows[1:])
    assert rows[0]["gain"] == ""
    for row in rows[1:]:
        assert float(row["gain"]) == pytest.approx(float(row["psnr"]) - float(rows[0]["psnr"]), abs=1e-5)
    assert float(rows[-1]["gain_high"]) - float(rows[-1]["gain_low"]) > 0  # picture by picture
    passes = table(tmp_path / "passes.csv")
    best = max(rows[3:], key=lambda row: float(row["psnr"]))
    assert [row["passes"] for row in passes] == ["one pass", "two, by pictures", "two, by latents"]
    assert float(passes[0]["psnr"]) == pytest.approx(float(best["psnr"]), abs=1e-4)
    assert float(passes[0]["changed"]) == 0 and all(float(row["changed"]) > 0 for row in passes[1:])
    assert (tmp_path / "study.png").exists() and (tmp_path / "grid.png").exists()


def test_own_pictures_and_an_inpainting_model(inpainter, tmp_path, command_line):
    to_pil(work(1).damaged[0]).resize((80, 72)).save(tmp_path / "photo.png")
    hole = np.zeros((72, 80), np.uint8)
    hole[20:40, 30:60] = 255
    Image.fromarray(np.stack([hole] * 4, 2)).save(tmp_path / "mask.png")  # white strokes on a clear layer
    flags = [
        "--image",
        tmp_path / "photo.png",
        "--mask",
        tmp_path / "mask.png",
        "--prompt",
        PROMPT,
        "--n",
        1,
        "--strength",
        1,
        "--guidance",
        2,
        "--steps",
        2,
        "--model",
        inpainter,
        "--method",
        "inpaint",
        "--size",
        "48x40",
        "--device",
        "cpu",
    ]
    code, out, _ = command_line(RESTORE, *flags, "--damaged", "--out", tmp_path / "out")
    assert code == 0 and "PSNR" not in out and "moved" in out
    assert "mask.png: 10.4% of the picture is to be repainted (what is painted on the transparent layer)" in out
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "mask.png")), hole)
    assert list(table(tmp_path / "out" / "study.csv")[0]) == [
        "method",
        "strength",
        "guidance",
        "steps",
        "moved",
        "moved_error",
        "moved_low",
        "moved_high",
    ]


def test_the_mask_must_have_the_size_of_the_picture(model, tmp_path, command_line):
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
    for size, colour, says in (
        ((64, 60), 255, "is 64x60 pixels and the picture"),
        ((64, 64), 0, "nowhere lighter than grey 0"),
    ):
        Image.new("L", size, colour).save(tmp_path / "mask.png")
        err = refused(
            command_line(
                RESTORE,
                "--image",
                tmp_path / "photo.png",
                "--mask",
                tmp_path / "mask.png",
                "--model",
                "./never-opened",
                "--device",
                "cpu",
            )
        )
        assert says in err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--strength", 0.5, 1.2], "--strength"),
        (["--guidance", 0], "--guidance"),
        (["--steps", 2, "--strength", 0.3], "less than one step"),
        (["--mask", "mask.png"], "name it with --image"),
        (["--image", "a.png", "--damaged"], "give --mask"),
        (["--image", "nowhere.png"], "there is no file"),
        (["--scheduler", "magic"], "unknown scheduler"),
        (["--mosaic-fraction", 0], "--mosaic-fraction"),
        (["--block", 0], "--block"),
        (["--n", 0], "--n"),
    ],
)
def test_what_restore_refuses(flags, says, model, tmp_path, command_line):
    assert says in refused(
        command_line(RESTORE, "--model", model, *flags, "--device", "cpu", "--out", tmp_path / "out")
    )
    assert not (tmp_path / "out").exists()


def test_similarity():
    truth = to_float(load("creatures", 32, n=3).pixels) * 0.8
    same, lighter = metrics.similarity(truth, truth), metrics.similarity(truth + 0.2, truth)
    assert same["ssim"].min() > 0.9999 and same["perceptual"].max() < 1e-9 and same["psnr"].min() > 80
    torch.testing.assert_close(lighter["psnr"], torch.full((3,), 20.0), atol=1e-3, rtol=0)  # 20 log10(2 / 0.2)
    blurred = torch.nn.functional.avg_pool2d(truth, 5, 1, 2)
    assert (metrics.similarity(blurred, truth)["perceptual"] > lighter["perceptual"]).all()
    assert metrics.rms_distance(truth + 0.2, truth).tolist() == pytest.approx([0.2] * 3)


def test_mean_and_error():
    values = torch.tensor([1.0, 2.0, 6.0, float("nan")])
    mean, error = metrics.mean_and_error(values)
    assert (mean, error) == pytest.approx((3.0, math.sqrt(7 / 3)))
    assert metrics.format_mean(values) == "3.00 ± 1.53" and metrics.format_mean(values[:1]) == "1.00"


def test_tone():
    red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    assert {name: round(float(value), 4) for name, value in metrics.tone(red).items()} == {
        "brightness": 0.3333,
        "saturation": 1.0,
        "clipped": 1.0,
        "detail": 0.0,
    }
    grey = metrics.tone(torch.zeros(1, 3, 8, 8) + 0.1 * (torch.arange(8) % 2))
    assert grey["clipped"] == 0 and grey["saturation"] == 0 and grey["detail"] > 0.01
