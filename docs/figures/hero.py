"""The film at the top of the front page, made by the shipped weights: digits and creatures appear out of noise, and a camera
leaves a dish and returns.

    python docs/figures/hero.py          # writes docs/figures/hero.webp, in about a minute on one CPU core
"""

import sys
from pathlib import Path

import common  # noqa: F401 - its settings must precede torch

# isort: split
from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).resolve().parent
for chapter in sorted(HERE.parents[1].glob("0[1-6]_*")):
    sys.path.append(str(chapter))

import torch  # noqa: E402
from matplotlib.font_manager import findfont  # noqa: E402
from torch import Tensor  # noqa: E402

from common import viz  # noqa: E402
from common.diffusion.denoiser import Denoiser  # noqa: E402
from common.diffusion.sampler_spec import Sampler  # noqa: E402
from common.evaluate.sample_sheet import draw_frames  # noqa: E402
from common.models.model_folder import load_model  # noqa: E402
from common.models.pipeline import SamplingConfig  # noqa: E402
from common.models.text_to_image_folder import open_latent_pipeline  # noqa: E402
from inpaint_gif.animation.camera import CameraPath, Move, paint, render_frames  # noqa: E402
from inpaint_gif.animation.canvas import FilmCanvas  # noqa: E402
from inpaint_gif.animation.flags import FilmFlags  # noqa: E402
from inpaint_gif.animation.render import first_picture, load_models, open_painter  # noqa: E402
from inpaint_gif.animation.timing import frame_times  # noqa: E402

SIDE, GAP, BAR = 256, 8, 28  # pixels of a panel, between panels, of the captions
MOMENTS, HOLD, MOVE = 20, 8, 30  # frames of the denoising, of the pause, of the camera's way there and back
PROMPTS = (
    "a red fire creature with bat wings",
    "一只黄色的电属性小怪兽，长着兔耳朵",
    "a blue creature with feathered wings",
    "a purple ghost creature",
)
CAPTIONS = ("chapter 1: digits", "chapters 2 to 5: creatures from words", "chapter 6: a dish, and a camera")


def digits() -> list[Tensor]:
    """Every moment of 16 digits. Each (16, 1, 28, 28)"""
    net, schedule, prediction, clip_x0 = load_model(HERE.parents[1] / "01_ddpm_mnist/pretrained", "cpu")
    shape = (16, net.cfg.in_channels, net.cfg.size, net.cfg.size)
    return Sampler.parse("ddim:60").frames(Denoiser(net, prediction, clip_x0), schedule, shape, 5, 0, device="cpu")


def creatures() -> list[Tensor]:
    """Every moment of four creatures. Each (4, 3, 128, 128)"""
    pipeline = open_latent_pipeline(HERE.parents[1] / "04_latent_sd/pretrained", "cpu")
    return draw_frames(pipeline, PROMPTS, SamplingConfig(5.0, sampler="ddim:40", seed=2), every_step=True)


def dish() -> tuple[list[Tensor], list[Tensor]]:
    """Every moment of a dish, (1, 3, S, S) each, and the frames of a camera that leaves it and returns, (3, S, S)."""
    flags = FilmFlags("土鸡蛋炒番茄", camera="zoom-out:2", frames=MOVE, device="cpu")
    models = load_models(flags)
    picture = first_picture(flags, models, models.dish_model.size)
    canvas, path = (
        FilmCanvas(picture),
        CameraPath.plan(Move.parse(flags.camera), *picture.shape[1:], flags.new_fraction),
    )
    list(paint(canvas, path, open_painter(flags, models, in_english=False), models.query.name, flags.seed))
    film = list(render_frames(canvas, path, frame_times(MOVE, "pingpong", "smooth", path.returns)))
    config = SamplingConfig(models.dish_model.config.guidance_scale, sampler="ddim:40", seed=flags.seed)
    drawn = draw_frames(models.dish_model.pipeline, [models.query.name] * flags.candidates, config, every_step=True)
    best = int((drawn[-1] - picture).square().mean((1, 2, 3)).argmin())  # the candidate that the film begins with
    return [moment[best : best + 1] for moment in drawn], film


def panel(images: Tensor, columns: int) -> Image.Image:
    """(N, C, H, W) in [-1, 1] as a picture of SIDE pixels, each image at an integer scale."""
    sheet = Image.new("RGB", (SIDE, SIDE), "white")
    cell = SIDE // columns
    for i, image in enumerate(images):
        small = viz.grid(image[None], 1)
        scale = cell // small.width
        large = small.resize(
            (small.width * scale,) * 2, Image.Resampling.NEAREST if columns > 1 else Image.Resampling.BICUBIC
        )
        margin = (cell - large.width) // 2
        sheet.paste(large.convert("RGB"), (i % columns * cell + margin, i // columns * cell + margin))
    return sheet


def compose(panels: list[Image.Image]) -> Image.Image:
    picture = Image.new("RGB", (3 * SIDE + 2 * GAP, SIDE + BAR), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.truetype(findfont("DejaVu Sans"), 13)
    for i, (each, caption) in enumerate(zip(panels, CAPTIONS, strict=True)):
        picture.paste(each, (i * (SIDE + GAP), 0))
        draw.text((i * (SIDE + GAP) + SIDE // 2, SIDE + BAR // 2), caption, "black", font, anchor="mm")
    return picture


def main() -> None:
    with torch.inference_mode():
        first, second, (third, film) = digits(), creatures(), dish()
    moments = [viz.changing_evenly(frames, MOMENTS) for frames in (first, second, third)]
    frames = [
        compose([panel(first[a], 4), panel(second[b], 2), panel(third[c], 1)])
        for a, b, c in zip(*moments, strict=True)
    ]
    frames += [compose([panel(first[-1], 4), panel(second[-1], 2), panel(image[None], 1)]) for image in film]
    durations = [140] * (MOMENTS - 1) + [140 * HOLD] + [80] * (len(film) - 1) + [900]
    data = viz.encode_animation(frames, "WEBP", duration=durations, loop=0, quality=68, method=6)
    (HERE / "hero.webp").write_bytes(data)
    print(f"{HERE / 'hero.webp'}: {len(frames)} frames, {len(data) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
