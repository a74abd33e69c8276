"""Regions, stages and changing guidance, and generate.py; and what the lesson's executed notebook prints about them."""

import json
import re
from dataclasses import replace
from functools import cache

import pytest
import torch
from PIL import Image

from common.diffusion.denoiser import Prediction
from common.diffusion.schedules import make_schedule
from common.models.pipeline import SamplingConfig
from common.random import Noise
from helpers.chapter_06 import GENERATE
from helpers.programs import ROOT
from inpaint_gif.clip.name_encoder import open_model
from inpaint_gif.inpainting import regional_prompts


def test_regions_and_stages_are_the_plain_thing_where_all_say_the_same(dish_run):
    drawer = open_model(dish_run)
    how = SamplingConfig(guidance_scale=3.0, sampler="heun:3")
    plain = drawer.guided(["米饭"], how)
    progress = regional_prompts.progress_along(drawer.noise_levels(how))
    shares = regional_prompts.region_weights(
        [regional_prompts.Region.parse("right:x"), regional_prompts.Region.parse("0.1,0.2,0.5,0.9:y")], 16, 16
    )
    torch.testing.assert_close(sum(shares), torch.ones(1, 1, 16, 16))
    both = regional_prompts.in_regions([(plain, share) for share in shares])
    staged = regional_prompts.in_stages([(0.0, both), (0.5, plain)], progress)
    scaled = drawer.guided(["米饭"], replace(how, guidance_scale=regional_prompts.changing_scale(3.0, 3.0, progress)))
    *_, first = drawer.from_noise(plain, 1, (16, 16), how, Noise(0))
    for other in (staged, scaled):
        *_, last = drawer.from_noise(other, 1, (16, 16), how, Noise(0))
        torch.testing.assert_close(last.x, first.x, atol=1e-4, rtol=1e-4)


def test_each_place_is_told_its_own():
    """With denoisers that know one colour each, the picture is made of these colours,
    each at its place and in its time.
    """
    path = make_schedule("cosine").noise_levels(10)
    level = next(iter(path.after(3)))

    def colour(value):
        return lambda x, level: Prediction(torch.full_like(x, value), (x - level.alpha * value) / level.sigma)

    x = torch.randn(1, 4, 8, 8)
    rest, right = regional_prompts.region_weights([regional_prompts.Region.parse("right：米饭")], 8, 8, soft=0.0)
    guess = regional_prompts.in_regions([(colour(1.0), rest), (colour(2.0), right)])(x, level)
    assert (guess.x0[..., :4] == 1).all() and (guess.x0[..., 4:] == 2).all()
    torch.testing.assert_close(level.alpha * guess.x0 + level.sigma * guess.eps, x)
    soft = regional_prompts.region_weights([regional_prompts.Region.parse("right:x")], 8, 8, soft=4.0)[1][0, 0, 0]
    assert soft[0] == 0 and soft[-1] == 1 and (soft.diff() >= 0).all() and 0 < soft[3] < soft[4] < 1
    over = regional_prompts.region_weights(
        [regional_prompts.Region.parse("left:x"), regional_prompts.Region.parse("middle:y")], 8, 8, soft=0.0
    )
    # the later lies on the earlier
    assert over[2][0, 0, 4, 3] == 1 and over[1][0, 0, 4, 3] == 0 and over[1][0, 0, 0, 0] == 1

    progress = regional_prompts.progress_along(path)
    shares = [progress(level) for level in list(path)[:-1]]
    assert shares == pytest.approx([k / 10 for k in range(10)])
    staged = regional_prompts.in_stages([(0.0, colour(1.0)), (0.3, colour(2.0)), (0.8, colour(3.0))], progress)
    assert [float(staged(x, level).x0.mean()) for level in list(path)[:-1]] == [1.0] * 3 + [2.0] * 5 + [3.0] * 2
    w = regional_prompts.changing_scale(8.0, 2.0, progress)
    assert [w(level) for level in list(path)[:-1]] == pytest.approx([8 - 0.6 * k for k in range(10)])


def test_control_from_the_command_line(dish_run, sd, nine, pixel_model, tmp_path, command_line):
    program, common = (
        GENERATE,
        [
            "--n",
            2,
            "--sampler",
            "ddim:4",
            "--device",
            "cpu",
            "--backend",
            "transformers",
            "--out",
            tmp_path / "rows.png",
        ],
    )
    code, _, err = command_line(
        program,
        "番茄炒蛋",
        "--model",
        dish_run,
        "--region",
        "right:米饭",
        "--then",
        "0.5:葱油生菜",
        "--guidance",
        "8>2",
        "--keep",
        tmp_path / "one.png",
        *common,
    )
    assert code == 0, err
    with Image.open(tmp_path / "one.png") as kept, Image.open(tmp_path / "rows.png") as rows:
        assert kept.size == (64, 64) and rows.size == (2 * 134, 2 * 134)
    code, _, err = command_line(program, "炸龘龘", "--model", dish_run, "--then", "0.5:米饭", *common)
    assert code == 0 and "never read" in err and "炸龘龘 is not one of the" in err and "米饭 is not" not in err
    code, _, err = command_line(program, "a bowl of rice", "--model", sd, "--sweep-then", "a red creature", *common)
    assert code == 0, err
    for flags, sentence in (
        (["--region", "米饭"], "cannot read the region '米饭'"),
        (["--region", "corner:米饭"], "is none of left, right"),
        (["--region", "0,0,2,1:米饭"], "is not within the picture"),
        (["--then", "米饭"], "cannot read the stage"),
        (["--then", "1.5:米饭"], "above 0 and below 1"),
        (["--then", "0.5:米饭", "0.5:汤"], "begin at the same share"),
        (["--guidance", "much"], "cannot read the guidance"),
        (["--guidance", "5>3>1"], "one scale or two"),
        (["--guidance", "-1"], "the guidance scale must be 0 or more and finite"),
        (["--model", nine], "paints into holes"),
        (["--model", pixel_model], "reads no text"),
        (["--soft", "nan"], "--soft must be 0 or more"),
        (["--seed", "-1"], "--seed must be 0 or more"),
        (["--keep", tmp_path / "one.avi"], "cannot tell the kind of picture from the name one.avi"),
    ):
        (tmp_path / "rows.png").unlink(missing_ok=True)
        code, _, err = command_line(
            program, "番茄炒蛋", *([] if "--model" in flags else ["--model", dish_run]), *flags, *common
        )
        assert code == 2 and sentence in err and "Traceback" not in err and not (tmp_path / "rows.png").exists(), err


# ------------------------------------------------------------------------------------------------------- in the lesson

NUMBER = r"([-+]?\d+(?:\.\d+)?)"


@cache
def printed() -> str:
    """All that the lesson's cells print."""
    cells = json.loads((ROOT / "06_inpaint_gif/lesson.ipynb").read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(output.get("text", [])) for cell in cells for output in cell.get("outputs", []))


def numbers(pattern: str) -> tuple[float, ...]:
    """The numbers of the one printed line that matches; N in the pattern stands for a number."""
    found = re.findall("(?m)^ *" + pattern.replace("N", NUMBER), printed())
    assert len(found) == 1, (pattern, found)
    return tuple(map(float, found[0]))


def test_each_half_of_a_plate_is_read_as_its_own_dish():
    """Counts of 12 halves that the CLIP calls tomato and egg; and green minus red, below 0 for tomatoes."""
    tomato, lettuce, both = (
        numbers(rf"{name} +left half +N \(N\), right half +N \(N\)$")
        for name in ("tomato, egg", "lettuce", "left: tomato, right: lettuce")
    )
    assert min(tomato[0], tomato[2]) >= 10 and max(lettuce[0], lettuce[2]) <= 2
    assert both[0] >= 10 and both[2] <= 2, "as each of both alone"
    assert both[1] < -0.1 and both[3] > 0.1


def test_only_an_early_change_of_the_prompt_decides_the_dish():
    """Shares of pictures that are nearer to the second name, with their intervals."""
    rows = ("rice", *(f"tomato after {begin}% of the steps" for begin in (25, 10, 5)), "tomato, egg")
    never, late, early, first, always = (numbers(rf"{row} +N +N +N% \(N% to N%\)$") for row in rows)
    assert never[2] <= late[2] <= early[2] < first[2] <= always[2]
    assert first[3] > early[4], "the intervals overlap"
    assert always[1] > first[1] > late[1], "cosine with the second name"


def test_guidance_at_high_noise_decides_how_colourful_a_picture_becomes():
    """Against a constant scale with the same mean; both intervals exclude 0."""
    falling, rising = (numbers(rf"w = {w} +N +N ± N +N +N ± N$") for w in ("5 > 1", "1 > 5"))
    assert falling[4] - falling[5] > 0 > rising[4] + rising[5]
