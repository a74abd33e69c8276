"""Masks, soft edges, compositing, seams, and the fills that need no network."""

import numpy as np
import pytest
import torch

from common.data.dishes.dataset import dish, draw
from common.errors import UserError
from common.io.pixels import to_float
from helpers.chapter_06 import SIZE, texture
from inpaint_gif.inpainting import compositing, edge_fill


def test_fills_continue_the_edge():
    ramp = torch.linspace(-1, 1, 32).expand(3, 32, 32).clone()
    mask = torch.zeros(1, 32, 32)
    mask[..., 24:] = 1
    assert torch.equal(edge_fill.nearest(ramp, mask)[..., 24:], ramp[..., 23:24].expand(3, 32, 8))
    assert torch.equal(edge_fill.reflect(ramp, mask)[..., 24:], ramp[..., 15:23].flip(-1))
    assert edge_fill.reflect(ramp, torch.zeros(1, 32, 32)).equal(ramp)
    with pytest.raises(UserError, match="covers the whole picture"):
        edge_fill.nearest(ramp, torch.ones(1, 32, 32))


def test_overlay_keeps_every_unmasked_bit():
    picture, painted = texture(), torch.full((3, SIZE, SIZE), float("nan"))
    mask = torch.zeros(1, SIZE, SIZE)
    mask[:, 20:40, 10:50] = 1
    painted[:, 20:40, 10:50] = 0.5
    result = compositing.overlay(picture, painted, mask)
    assert torch.equal(result[:, 20:40, 10:50], painted[:, 20:40, 10:50])
    assert torch.equal(result[mask.expand(3, -1, -1) == 0], picture[mask.expand(3, -1, -1) == 0])


def test_soft_edges():
    mask = torch.zeros(1, 32, 32)
    mask[..., 16:] = 1
    soft, inner = compositing.blurred(mask, 2), compositing.feathered(mask, 3)
    assert 0.35 < soft[0, 5, 15] < 0.5 < soft[0, 5, 16] < 0.65 and soft[0, 5, 0] == 0 and soft[0, 5, -1] == 1
    assert (inner[..., :16] == 0).all() and inner[0, 5, 15:21].tolist() == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1])
    assert compositing.blurred(mask, 0).equal(mask) and compositing.feathered(mask, 0).equal(mask)


def test_matched_colours_close_a_seam_of_another_tint():
    picture = texture() * 0.5
    mask = torch.zeros(1, SIZE, SIZE)
    mask[..., 40:] = 1
    tinted = picture + 0.3
    pasted = compositing.overlay(picture, tinted, mask)
    better = compositing.overlay(picture, compositing.matched(picture, tinted, mask), mask)
    assert compositing.seam(pasted, mask) > 2 > 1.3 > compositing.seam(better, mask)
    assert torch.equal(better[..., :40], picture[..., :40])


def test_seam():
    mask = torch.zeros(1, SIZE, SIZE)
    mask[..., 40:] = 1
    natural = [compositing.seam(texture(seed=s), mask) for s in range(12)]
    hard = [
        compositing.seam(compositing.overlay(texture(seed=s), texture(seed=s + 50), mask), mask) for s in range(12)
    ]
    assert np.mean(natural) == pytest.approx(1, abs=0.1) and max(natural) < 1.5 < 3 < min(hard)
    flat = torch.zeros(3, SIZE, SIZE)
    assert compositing.seam(flat, mask) == 1 and compositing.seam(flat + mask, mask) > 50
    assert compositing.seam(texture(), torch.zeros_like(mask)) == 1
    ramp = torch.linspace(-1, 1, SIZE).expand(3, SIZE, SIZE)  # a slope is no seam
    assert compositing.seam(ramp, mask) == 1 and compositing.seam(ramp.transpose(1, 2), mask) == 1


@pytest.mark.parametrize("size", [(32, 32), (48, 48), (32, 48), (96, 64)])
@pytest.mark.parametrize("padding", [0, 8, 500])
def test_cropped_inpainting_changes_nothing_but_the_mask(size, padding):
    picture, seen = texture(80), []
    mask = torch.zeros(1, 80, 80)
    mask[:, 50:60, 5:25] = 1

    def red(image, hole, prompt, seed):
        seen.append((image.shape, hole.shape, set(hole.unique().tolist()), prompt, seed))
        # and it spoils the rest
        return torch.tensor([1.0, -1, -1])[:, None, None].expand_as(image) * hole - (1 - hole)

    result = compositing.inpaint_cropped(red, picture, mask, "葱", 5, size, padding)
    known = (mask == 0).expand(3, -1, -1)
    assert torch.equal(result[known], picture[known]) and not torch.equal(result, picture)
    assert (result[0, 52:58, 8:22] > 0.8).all()
    assert seen == [((3, *size), (1, *size), {0.0, 1.0}, "葱", 5)]
    assert torch.equal(picture, texture(80))  # the argument is left alone


def test_box_around():
    mask = torch.zeros(1, 40, 60)
    assert compositing.box_around(mask, 4, 1) is None
    mask[:, 2:6, 50:60] = 1
    assert compositing.box_around(mask, 0, 1) == (slice(0, 10), slice(50, 60))
    assert compositing.box_around(mask, 4, 1) == (slice(0, 14), slice(46, 60))
    assert compositing.box_around(mask, 1000, 1) == (slice(0, 40), slice(0, 60))


def test_sizes_that_a_network_cannot_halve():
    compositing.check_size(64, 128, 16)
    with pytest.raises(UserError, match="divisible by 16.*try 96 x 64"):
        compositing.check_size(100, 64, 16)


def tinted_ring(tint: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A smooth picture, the same with another shade, and the hole of a camera that moves back."""
    y, x = torch.meshgrid(torch.linspace(0, 3, SIZE), torch.linspace(0, 2, SIZE), indexing="ij")
    picture = torch.stack([0.3 * (x + y).sin(), 0.2 * (x - y).cos(), 0.1 * x]).float()
    mask = torch.ones(1, SIZE, SIZE)
    mask[:, 5:-5, 5:-5] = 0
    return picture, picture + tint * torch.tensor([1.0, 0.5, -1.0]).view(3, 1, 1), mask


def test_a_shade_is_continued_across_the_edge():
    picture, painted, mask = tinted_ring(0.08)
    level = compositing.levelled(picture, painted, mask)
    hole = (mask > 0).expand_as(picture)
    before, after = ((each - picture).abs()[hole].mean() for each in (painted, level))
    assert after < 0.3 * before  # what is left is the slope of the picture
    assert torch.equal(level[~hole], painted[~hole])
    for one in (torch.zeros_like(mask), torch.ones_like(mask)):  # nothing to compare
        assert torch.equal(compositing.levelled(picture, painted, one), painted)


def test_an_object_at_the_edge_is_no_shade():
    """A plate that ends at a fifth of one side does not colour the table. (A mean of the colours would.)"""
    *_, mask = tinted_ring(0.0)
    known = torch.full((3, SIZE, SIZE), 0.2)
    known[:, 26:38, -12:-5] = torch.tensor([-0.9, -0.6, 0.9]).view(3, 1, 1)
    level = compositing.levelled(known, torch.full_like(known, 0.2), mask)
    changed = (level - 0.2).abs().amax(0) * mask[0]
    assert changed.max() <= compositing.LARGEST_TINT + 1e-6
    changed[20:44] = 0
    assert changed.max() < 0.01


def test_a_step_of_the_colour_is_measured():
    picture, painted, mask = tinted_ring(0.08)
    true = compositing.tint_step(picture, mask)
    assert compositing.tint_step(torch.where(mask > 0, painted, picture), mask) > 0.05 > true
    flat = torch.zeros(3, SIZE, SIZE)
    stepped = torch.where(mask > 0, 0.2, flat)
    assert abs(compositing.tint_step(stepped, mask) - 0.2) < 1e-6 and compositing.tint_step(flat, mask) == 0
    assert compositing.tint_step(stepped, torch.zeros_like(mask)) == 0


def test_median_with_weights():
    values = torch.tensor([3.0, 1.0, 10.0])
    weights = torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 0.0], [1.0, 1.0, 5.0]])
    assert compositing.weighted_median(values, weights).tolist() == [3, 1, 10]


def test_enlarged_pictures_are_sharper_and_nearer_to_the_truth():
    """Measured on drawn dishes, which exist at any size."""
    attributes, pose = dish(0, "test", 3)
    small, true = (to_float(torch.from_numpy(draw(attributes, size, pose))) for size in (64, 192))
    plain, sharp = (compositing.enlarged(small, 3, amount) for amount in (0, 0.6))

    def slopes(image):
        return float(image.diff(dim=1).abs().mean() + image.diff(dim=2).abs().mean())

    assert plain.shape == sharp.shape == true.shape
    assert slopes(plain) < slopes(sharp) < slopes(true)
    assert (sharp - true).square().mean() < (plain - true).square().mean()
    assert torch.equal(compositing.enlarged(small, 1, 0.6), small)
