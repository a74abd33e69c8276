"""The generators behind the tabs, without a browser: what they yield, and that it is what the text of the page says."""

import ast
import io
from pathlib import Path

import pytest
import torch
from PIL import Image

import common.demo.pictures
from common.demo.pictures import creatures, digits, film, own_picture, plane
from common.diffusion.sampler_spec import Sampler
from common.diffusion.schedules import make_schedule
from common.errors import UserError


def test_what_makes_pictures_knows_no_browser():
    for path in Path(common.demo.pictures.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not [
                name for name in names if name.startswith(("gradio", "common.demo.page", "common.demo.server"))
            ]


# --------------------------------------------------------------------------------------------------------------- digits


def test_samplers_run_side_by_side_from_one_noise():
    moments = list(digits.denoise_digits(("ddim", "heun"), 3, 2, seed=1))
    assert [(m.done, m.total) for m in moments] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert torch.equal(moments[0].x["ddim"], moments[0].x["heun"])
    assert not torch.equal(moments[-1].x["ddim"], moments[-1].x["heun"])
    assert moments[-1].x["ddim"].shape == (2, 1, 28, 28)
    assert moments[0].x["ddim"].std() > 0.9  # noise
    # the last step of ddim removes all noise: sample and prediction agree
    assert torch.allclose(moments[-1].x["ddim"], moments[-1].x0["ddim"])


def test_one_sampler_may_be_chosen_twice():
    *_, last = digits.denoise_digits(("ddim", "ddim"), 2, 1, seed=0)
    assert list(last.x) == ["ddim"]


# ---------------------------------------------------------------------------------------------------------------- plane


@pytest.mark.parametrize("shape", plane.SHAPES)
def test_shapes_lie_in_the_square(shape):
    points, labels = plane.curves(shape)
    assert points.abs().max() <= 1 and labels.unique().tolist() == list(range(plane.CLASSES))


def test_an_unknown_shape_is_refused():
    with pytest.raises(UserError, match="moons"):
        plane.curves("cube")


def test_the_ideal_prediction_is_the_mean_of_what_could_be_there():
    """Against an estimate from a million draws of (x0, x_t)."""
    points = torch.tensor([[0.5, 0.0], [-0.5, 0.2]])
    level = list(make_schedule("cosine").noise_levels(10))[5]
    generator = torch.Generator().manual_seed(0)
    clean = points[torch.randint(2, (1_000_000,), generator=generator)]
    clean = clean + plane.BLUR * torch.randn(clean.shape, generator=generator)
    noisy = level.alpha * clean + level.sigma * torch.randn(clean.shape, generator=generator)
    x = torch.tensor([[0.15, -0.1]])
    near = clean[(noisy - x).norm(dim=1) < 0.05]
    assert len(near) > 500
    expected = near.mean(0)
    assert torch.allclose(plane.ideal_x0(x, level, points)[0], expected, atol=0.06)


def test_guidance_adds_vectors():
    points, labels = plane.curves("moons")
    level = list(make_schedule("cosine").noise_levels(10))[5]
    x = plane.square_grid(3)
    off, on = (plane.IdealDenoiser(points, labels, 0, w).predictions(x, level) for w in (1.0, 3.0))
    assert torch.allclose(off["guided"], off["cond"], atol=1e-6)
    assert torch.allclose(on["guided"], on["uncond"] + 3 * (on["cond"] - on["uncond"]), atol=1e-5)
    free = plane.IdealDenoiser(points, labels, None, 7.0).predictions(x, level)
    assert torch.allclose(free["guided"], free["uncond"], atol=1e-5)


def test_the_cloud_ends_on_the_class():
    *_, last = plane.denoise_plane("rings", 1, 1.0, "ddim", 30, 200, seed=0)
    radius = last.x.norm(dim=1)
    assert last.done == last.total == 30 and last.sigma == 0
    assert ((radius - 0.9).abs() < 4 * plane.BLUR).float().mean() > 0.95


def test_the_cloud_keeps_both_classes_without_guidance():
    *_, last = plane.denoise_plane("rings", None, 1.0, "ddim", 30, 200, seed=0)
    outer = (last.x.norm(dim=1) > 0.65).float().mean()
    assert 0.3 < outer < 0.7


# ------------------------------------------------------------------------------------------------------------ creatures


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("a red fire creature with bat wings", {"colour": "red", "element": "fire", "wings": "bat"}),
        ("一只红色的火属性小怪兽，长着蝙蝠翅膀", {"colour": "red", "element": "fire", "wings": "bat"}),
        ("a tired monster", {}),  # no red in it
        ("a blue creature with two horns but without bat wings", {"colour": "blue", "horns": "two"}),
        ("蓝色的怪兽，没有蝙蝠翅膀", {"colour": "blue"}),
        ("番茄炒蛋", {}),
    ],
)
def test_what_a_prompt_asks_for(prompt, wanted):
    assert creatures.asked_for(prompt) == wanted


def test_every_caption_asks_for_what_it_mentions():
    from common.data.creatures.dataset import caption, creature, mentioned

    for i in range(60):
        attributes, _ = creature(0, "test", i)
        positive = {name: attributes[name] for name in mentioned(0, "test", i) if attributes[name] != "none"}
        for language in ("en", "zh"):
            found = creatures.asked_for(caption(0, "test", i, language))
            assert {k: v for k, v in found.items() if v != "plain"} == {
                k: v for k, v in positive.items() if v != "plain"
            }


def test_creatures_are_read_at_the_end():
    moments = list(creatures.draw_creatures("a red fire creature", "", 5.0, 2, 4, seed=0))
    assert [m.done for m in moments] == [1, 2, 3, 4] and not moments[0].readings
    last = moments[-1]
    assert last.images.shape == (2, 3, 128, 128) and last.images.abs().max() <= 1
    assert [len(reading) for reading in last.readings] == [11, 11]
    assert {r.attribute: r.asked for r in last.readings[0][:2]} == {"colour": "red", "element": "fire"}
    assert all(0 <= r.probability <= 1 for r in last.readings[0])


def test_the_negative_prompt_counts():
    images = [
        list(creatures.draw_creatures("a creature", negative, 5.0, 1, 2, seed=0))[-1].images
        for negative in ("", "red")
    ]
    assert not torch.equal(*images)


def test_unknown_words_are_named():
    assert creatures.unknown_words("a red zeppelin") == ["zeppelin"]


# ---------------------------------------------------------------------------------------------------------- own picture


@pytest.fixture(scope="module")
def given():
    return own_picture.drawn_picture("creature", 3)


def test_a_picture_is_cut_to_its_middle_square():
    image = Image.new("RGBA", (200, 100), "blue")
    image.paste((255, 0, 0, 255), (50, 0, 150, 100))
    picture = own_picture.to_picture(image)
    assert picture.shape == (3, 128, 128)
    assert torch.equal(picture[:, 64, 64], torch.tensor([1.0, -1.0, -1.0]))
    assert torch.equal(picture[:, 64, 1], picture[:, 64, 64])


def test_transparent_parts_are_white():
    assert own_picture.to_picture(Image.new("RGBA", (128, 128), (0, 0, 0, 0))).min() == 1


def test_the_hole_is_where_the_brush_was():
    brush = Image.new("RGBA", (128, 128), (0, 0, 0, 0))
    brush.paste((225, 60, 60, 255), (10, 20, 30, 40))
    hole = own_picture.to_hole(brush)
    assert hole.shape == (1, 128, 128) and hole.sum() == 400 and hole[0, 20, 10] == 1 and hole[0, 10, 20] == 0


def test_img2img_takes_its_share_of_the_steps(given):
    moments = list(own_picture.change_picture(given, "a blue creature", 0.5, 3.0, 6, seed=0))
    assert [(m.done, m.total) for m in moments] == [(1, 3), (2, 3), (3, 3)]
    assert list(moments[-1].pictures) == ["given", "result"]
    assert torch.equal(moments[-1].pictures["given"], given)


def test_a_mosaic_is_repaired_twice(given):
    *_, last = own_picture.repair_mosaic(given, "", 8, 0.4, 3.0, 10, seed=0)
    assert list(last.pictures) == ["given", "mosaic", "bicubic", "result"]
    block = last.pictures["mosaic"][:, :8, :8]
    assert torch.allclose(block, block[:, :1, :1].expand_as(block))
    assert torch.allclose(block[:, 0, 0], given[:, :8, :8].mean((1, 2)), atol=1e-5)


def test_inpainting_changes_the_hole_alone(given):
    hole = torch.zeros(1, 128, 128)
    hole[:, 20:40, 20:40] = 1
    moments = list(own_picture.repaint_hole(given, hole, "a red creature", 3.0, 2, seed=0))
    assert moments[-1].done == moments[-1].total == len(moments)
    for moment in moments:
        known = (hole == 0).expand_as(given)
        assert torch.equal(moment.pictures["result"][known], given[known])
    assert not torch.equal(moments[-1].pictures["result"], given)


# ----------------------------------------------------------------------------------------------------------------- film


def test_a_film_is_drawn_painted_and_rendered():
    moments = list(film.make_film("番茄炒鸡蛋", "right", 4, 2, seed=0))
    assert [m.stage for m in moments] == ["draw"] * 3 + ["paint"] * 2 + ["film"]
    assert moments[-1].done == moments[-1].total and moments[1].chosen is None
    assert moments[2].chosen in range(film.CANDIDATES) and moments[0].nearest == ()
    animation = Image.open(io.BytesIO(moments[-1].film))
    assert (animation.format, animation.n_frames, animation.size) == ("WEBP", 4, (384, 384))


def test_a_name_that_is_not_on_the_menu_has_neighbours():
    first = next(film.make_film("火星炒饭", "up", 4, 2, seed=0))
    assert len(first.nearest) == 3


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_menu_has_names(language):
    assert len(set(film.dish_names(language))) > 60


def test_samplers_of_the_page_are_known():
    assert all(Sampler.parse(f"{name}:4").name == name for name in digits.CHOICES)
