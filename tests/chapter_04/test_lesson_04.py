"""What chapter 4's lesson says that its demonstrations show is what its outputs show: the direction of each effect, with
intervals that do not overlap where the text speaks of a difference. And its figures and longhand equal the package.
"""

import json
import re
from functools import cache

import pytest
import torch

from common.grade.checks import load
from helpers.programs import ROOT

CHAPTER = ROOT / "04_latent_sd"
NUMBER = r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?"


@cache
def outputs() -> str:
    """All that the lesson prints."""
    cells = json.loads((CHAPTER / "lesson.ipynb").read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(o.get("text", [])) for cell in cells for o in cell.get("outputs", []))


def printed(pattern: str) -> list[tuple[float, ...]]:
    """The numbers in each printed line that matches; N in the pattern stands for a number."""
    found = re.findall(re.sub(r"(?<![A-Z])N(?![A-Z])", lambda _: f"({NUMBER})", pattern), outputs())
    assert found, pattern
    return [tuple(map(float, each if isinstance(each, tuple) else (each,))) for each in found]


def test_the_autoencoder_is_better_than_shrinking():
    rows = printed(r"autoencoder N dB \(worst of N: N\), shrunk to N x N pixels N dB")
    assert len(rows) == 2 and all(row[0] > row[-1] + 2 for row in rows)


def test_latents_are_cheaper_than_pixels():
    (latents,), (same,), (fair,) = (
        [row[-2:] for row in printed(rf"{name} +N +N +N MB +N")]
        for name in ("latents", "pixels, the same network", "pixels, two more stages")
    )
    assert latents == (1.0, 1.0) or latents[-1] == 1.0
    assert same[-1] > fair[-1] > 2


def test_beta_decides_between_reconstruction_and_sampling():
    rows = {beta: rest for beta, *rest in printed(r"(?m)^ +N +N +N +N +N +N$")}
    error, _, spread, _, distance = zip(*(rows[beta] for beta in (0, 1, 100)), strict=True)
    assert error[0] < error[1] < error[2]
    assert distance[1] < distance[0] / 4 and distance[1] < distance[2] / 4
    assert spread[0] > 2 and spread[2] < 0.1


def test_a_diffusion_model_of_codes_comes_closest():
    prior, fitted, learned = (
        printed(rf"z from {how} +Fréchet distance +N")[0][0]
        for how in (r".\(0, I\)", "a fitted normal", "a diffusion model")
    )
    beta_1 = next(row[-1] for row in printed(r"(?m)^ +N +N +N +N +N +N$") if row[0] == 1)
    assert learned < beta_1 < prior and learned < fitted < prior


def test_right_captions_have_the_lowest_loss():
    right, empty, wrong = (printed(rf"{name} captions: loss N")[0][0] for name in ("right", "empty", "wrong"))
    assert right < empty < wrong


def test_the_longhand_is_the_pipeline():
    assert printed(r"difference of a pixel between this cell and pipeline.py: N")[0][0] < 1e-3
    assert printed(r"largest difference of a pixel, in a range of 2: N")[0][0] < 1e-3


def test_prompts_are_followed_with_guidance():
    at = {w: (low, high) for w, _, low, high in printed(r"w = N +N% +N% to N%")}
    assert at[3.0][0] > at[0.0][1] and at[1.0][0] > at[0.0][1]
    assert at[3.0][0] > printed(r"real, other captions +N%")[0][0]


def test_the_negative_prompt_removes_what_it_names():
    before, after = (
        printed(rf"{name} +\{{.*\}}: +N of N = +N% \(N% to N%\)")[0]
        for name in ("no negative prompt", r"\nnegative prompt")
    )
    assert after[-1] < before[-2], "the intervals of the shares with and without the negative prompt overlap"


def test_strength_trades_the_image_for_the_prompt():
    share = r"N of N = +N% \(N% to N%\)"
    rows = printed(rf"strength N: blue +{share}, same body +{share}, PSNR N dB")
    found = {row[0]: {"blue": row[4:6], "body": row[9:11], "psnr": row[-1]} for row in rows}
    weak, strong = found[0.2], found[1.0]
    assert strong["blue"][0] > weak["blue"][1], "more images are blue at full strength"
    assert weak["body"][0] > strong["body"][1], "more bodies are kept at small strength"
    assert sorted((each["psnr"] for each in found.values()), reverse=True) == [each["psnr"] for each in found.values()]


def test_the_cache_has_its_own_name_for_its_own_weights():
    assert "another name if one weight changes: True" in outputs()
    assert "another name if only the scaling factor changes: False" in outputs()
    assert printed(r"cached N ms, on the fly N ms")[0][0] < printed(r"cached N ms, on the fly N ms")[0][1]


# ------------------------------------------------------------------------------------------------ figures, exercises


def test_grids_are_enlarged_by_whole_factors():
    from common.grade.chapter import open_chapter

    open_chapter("04_latent_sd")
    from latent_sd.pictures import WIDEST, show_images

    for side, columns, scale in ((8, 12, 5), (16, 12, 4), (64, 8, 2), (128, 4, 1), (128, 8, 1)):
        picture = show_images(torch.zeros(columns, 3, side, side), columns)
        assert picture.width == scale * (columns * (side + 2) + 2) and picture.width <= WIDEST + 80


@pytest.fixture(scope="module")
def solutions():
    return load(CHAPTER / "exercises/solutions.py", "solutions_of_chapter_4")


def test_the_derived_divergence_is_that_of_the_package(solutions):
    from common.models.vae import Gaussian

    mean, std = 1.3, 0.4
    posterior = Gaussian(torch.tensor([[mean]]), torch.tensor([[std]]).square().log())
    assert solutions.kl_of_gaussians(mean, std, 0.0, 1.0) == pytest.approx(float(posterior.kl()), rel=1e-5)


def test_the_best_posterior_is_that_of_the_larger_pixel_noise(solutions):
    """As the lesson says of formula (5): beta is a pixel noise of sqrt(beta) r."""
    at_beta = solutions.best_posterior(0.9, 1.4, 0.3, 5.0)
    assert at_beta == pytest.approx(solutions.best_posterior(0.9, 1.4, 0.3 * 5**0.5, 1.0))


def test_illusions_refuse_unsolved_answers_in_one_sentence(tmp_path):
    from common.errors import UserError
    from common.grade.chapter import open_chapter

    open_chapter("04_latent_sd")
    from latent_sd import illusions

    program = load(CHAPTER / "exercises/illusions.py", "illusions_program")
    with pytest.raises(UserError, match="there is no file"):
        illusions.draw_illusions(program.Args(submission=tmp_path / "none.py"))
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(UserError, match="has no function anagram_eps"):
        illusions.draw_illusions(program.Args(submission=tmp_path / "empty.py"))
    with pytest.raises(UserError, match="exercise 12: anagram_eps is not solved yet"):
        illusions.draw_illusions(program.Args(n=1, steps=1))


def test_illusions_are_drawn_and_counted(tmp_path, capsys):
    from common.grade.chapter import open_chapter

    open_chapter("04_latent_sd")
    from latent_sd import illusions

    program = load(CHAPTER / "exercises/illusions.py", "illusions_program")
    answers = CHAPTER / "exercises/solutions.py"
    illusions.draw_illusions(program.Args(submission=answers, n=2, steps=2, out=tmp_path / "drawn.png"))
    text = capsys.readouterr().out
    assert "of 2 anagrams, upright (a creature with rabbit ears): ears:" in text and (tmp_path / "drawn.png").exists()
    assert "of 2 hybrid images, from near (a creature with bear ears): ears:" in text
    assert "from far (a creature with rabbit ears): ears:" in text and "bear ears alone, from far: ears:" in text


def test_a_picture_from_far_keeps_what_is_large():
    """Flat halves stay apart, and fine stripes become grey."""
    from common.grade.chapter import open_chapter

    open_chapter("04_latent_sd")
    from latent_sd.illusions import FAR, from_far

    halves = torch.ones(1, 3, 8 * FAR, 8 * FAR)
    halves[..., 4 * FAR :] = -1
    stripes = torch.ones_like(halves)
    stripes[..., ::2] = -1
    seen = from_far(torch.cat([halves, stripes]))
    assert seen.shape == (2, 3, 8 * FAR, 8 * FAR)
    assert (seen[0, ..., :FAR] == 1).all() and (seen[0, ..., -FAR:] == -1).all() and seen[1].abs().max() < 1e-6
