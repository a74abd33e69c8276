"""The camera of chapter 6, without a network: directions as measured in the pictures, even speed, masks, loops, and film files."""

import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from common.errors import UserError
from inpaint_gif.animation import camera
from inpaint_gif.animation import timing as loops
from inpaint_gif.animation import writers as film
from inpaint_gif.animation.camera import Move, Path, Step, paint, shoot
from inpaint_gif.animation.canvas import KERNELS, Window, World
from inpaint_gif.animation.motion import motion
from inpaint_gif.inpainting import compositing as masks
from inpaint_gif.inpainting import edge_fill as fill

SIZE = 64


def texture(size: int = SIZE, seed: int = 0) -> torch.Tensor:
    """A picture with something everywhere, coarse and fine."""
    rng = np.random.default_rng(seed)
    layers = [gaussian_filter(rng.standard_normal((3, size, size)), (0, s, s)) * s for s in (1.2, 4)]
    return torch.from_numpy(np.tanh(1.5 * sum(layers))).float()


def shot(text: str, frames: int = 12, loop: str = "once", ease: str = "linear", picture=None, kernel="bicubic", engine=fill.reflect):
    """The film of a move, its path and what was painted for it."""
    picture = texture() if picture is None else picture
    path = Path.plan(Move.parse(text), *picture.shape[1:])
    path = path.around() if loop == "round" else path
    world = World(picture, kernel)
    keyframes = list(paint(world, path, engine))
    return list(loops.close(shoot(world, path, loops.clock(frames, loop, ease, path.returns)), frames)), path, keyframes


def scene(window: Window, waves: int = 12, fine: float = 0.35) -> torch.Tensor:
    """A plane without end, seen through a window: waves, so that it is known exactly at any place. fine: radians a pixel"""
    rng = np.random.default_rng(3)
    steps = (np.arange(SIZE) + 0.5 - SIZE / 2) * window.scale
    x, y = window.x + steps, window.y + steps[:, None]
    all_of_them = [np.sin(a * x + b * y + c) for a, b, c in rng.uniform([-fine, -fine, 0], [fine, fine, 6.3], (waves, 3))]
    return torch.from_numpy(sum(all_of_them) / waves).float().expand(3, -1, -1)


# --- how motion is measured


@pytest.mark.parametrize("shift", [(0, 0), (1, 0), (0, 1.6), (-2.37, 0), (0.31, 0.22), (2.5, -3.3), (5, 4)])
@pytest.mark.parametrize("growth", [0, 0.02, -0.03])
def test_motion_is_measured_as_it_was_made(shift, growth):
    """Seen through a window that stands elsewhere and covers less, what is there is exactly as far away and as large as it should be."""
    before, after = Window(3, 1), Window(3 - shift[0] / (1 + growth), 1 - shift[1] / (1 + growth), 1 / (1 + growth))
    found, grown = motion(*(scene(window, waves=300, fine=2) for window in (before, after)))
    assert found == pytest.approx(shift, abs=0.1 if growth else 0.03) and grown == pytest.approx(growth, abs=0.001)


# --- moves


@pytest.mark.parametrize("name", camera.PANS)
def test_content_moves_against_the_camera(name):
    frames, path, _ = shot(name)
    direction = -np.array(camera.PANS[name], float)
    direction /= np.linalg.norm(direction)
    speed = path.lengths.sum() / (len(frames) - 1)
    for a, b in zip(frames, frames[1:], strict=False):
        shift, growth = motion(a, b)
        assert shift @ direction / np.linalg.norm(shift) > math.cos(math.radians(6)), (name, shift)
        assert np.linalg.norm(shift) == pytest.approx(speed, abs=0.12) and abs(growth) < 0.01


@pytest.mark.parametrize(("name", "sign"), [("zoom-in", 1), ("zoom-out", -1)])
def test_content_grows_or_shrinks_by_the_same_ratio_in_every_frame(name, sign):
    frames, path, _ = shot(name + ":3")
    ratio = (path.legs[0].start.scale / path.legs[-1].end.scale) ** (1 / (len(frames) - 1))
    for a, b in zip(frames, frames[1:], strict=False):
        shift, growth = motion(a, b)
        assert np.sign(growth) == sign and growth == pytest.approx(ratio - 1, abs=0.25 * abs(ratio - 1))
        assert np.linalg.norm(shift) < 0.3


@pytest.mark.parametrize("keyframes", [4, 8])
def test_ring_turns_clockwise_at_constant_speed(keyframes):
    frames, path, _ = shot(f"ring:{keyframes}", 4 * keyframes, "seamless")
    for k, (a, b) in enumerate(zip(frames, frames[1:] + frames[:1], strict=True)):  # from the last to the first, too
        shift, growth = motion(a, b)
        angle = 2 * math.pi * (k + 0.5) / len(frames)  # the camera goes to (cos, sin): right first, then down
        assert -shift @ (math.cos(angle), math.sin(angle)) / np.linalg.norm(shift) > math.cos(math.radians(8))
        assert np.linalg.norm(shift) == pytest.approx(path.lengths.sum() / len(frames), abs=0.15)


def test_chain_does_one_move_after_the_other():
    frames, path, keyframes = shot("right,zoom-out,up", 29)
    assert [k.stop.name for k in keyframes] == ["right", "right", "zoom-out", "zoom-out", "up", "up"]
    ends = np.cumsum(path.lengths) / path.lengths.sum() * 28
    seen = {name: [motion(frames[k], frames[k + 1]) for k in range(28) if start <= k and k + 1 <= end]
            for name, start, end in (("right", 0, ends[1]), ("zoom-out", ends[1], ends[3]), ("up", ends[3], 28))}  # fmt: skip
    assert all(len(pairs) > 1 for pairs in seen.values())
    assert all(shift[0] < -1 and abs(shift[1]) < 0.2 for shift, _ in seen["right"])
    assert all(growth < -0.02 for _, growth in seen["zoom-out"])
    assert all(shift[1] > 1 and abs(shift[0]) < 0.2 for shift, _ in seen["up"])


@pytest.mark.parametrize("text", [*camera.MOVES, "ring:8", "right:3,zoom-out,down-left", "zoom-in,right", "zoom-out,zoom-in"])
def test_film_is_the_scene_if_the_engine_paints_the_scene(text):
    """The whole chain, against the truth: windows, resampling, masks, order of painting, joints between pictures."""
    path = Path.plan(Move.parse(text), SIZE, SIZE)
    world, stops = World(scene(Window())), iter(path.stops())
    pending = []

    def oracle(image, mask, prompt, seed):
        return scene(pending[-1])

    keyframes, painter = [], paint(world, path, oracle)
    for stop in stops:
        pending.append(stop.window)
        keyframes.append(next(painter))
    times = loops.clock(17)
    for time, frame in zip(times, shoot(world, path, times), strict=True):
        error = (frame - scene(path.at(time))).abs()
        assert error.mean() < 0.01 and error.max() < 0.12, (time, float(error.mean()), float(error.max()))
    assert next(painter, None) is None


def test_equal_times_move_the_picture_equally():
    path = Path.plan(Move.parse("right:2,zoom-out:2,down-left,ring"), 48, 64)
    passed, windows = np.cumsum([0, *path.lengths]), [path.at(k / 400) for k in range(401)]
    moved = [camera.Leg("", a, b).length(48, 64) for a, b in zip(windows, windows[1:], strict=False)]
    joints = {int(p / passed[-1] * 400) for p in passed}
    inner = [m for k, m in enumerate(moved) if k not in joints]
    assert np.ptp(inner) < 0.01 * np.mean(inner)
    assert path.legs[0].end.x == 16 and path.legs[-1].end.same_as(path.legs[-4].start)


@pytest.mark.parametrize("kernel", KERNELS)
def test_motion_is_smooth_below_a_pixel(kernel):
    """At a third of a pixel per frame, every frame differs from the last one, and by nearly the same amount."""
    picture = torch.from_numpy(gaussian_filter(texture().numpy(), (0, 1.5, 1.5)))
    frames, path, _ = shot("right:1", 49, picture=picture, kernel=kernel)
    assert path.lengths.sum() / 48 == pytest.approx(1 / 3)
    steps = np.array(loops.steps(frames, looped=False))
    assert steps.max() / steps.min() < (1.5 if kernel == "bilinear" else 1.25)
    sharp = np.array([float((f[..., 1:] - f[..., :-1]).square().mean()) for f in frames])
    assert sharp.min() / sharp.max() > (0.8 if kernel == "bilinear" else 0.9)  # no breathing between sharp and soft


@pytest.mark.parametrize("text", camera.MOVES)
def test_masks_are_what_is_not_seen_and_the_rest_is_kept(text):
    noise = torch.Generator().manual_seed(1)
    path, world = Path.plan(Move.parse(text), SIZE, SIZE), World(texture())

    def vandal(image, mask, prompt, seed):
        return torch.rand(image.shape, generator=noise) * 2 - 1

    for keyframe in paint(world, path, vandal):
        unseen = keyframe.mask.bool().expand(3, -1, -1)
        assert set(keyframe.mask.unique().tolist()) <= {0.0, 1.0}
        assert (keyframe.moved[unseen] == 0).all() and not (keyframe.moved[~unseen] == 0).any()
        assert torch.equal(keyframe.image[~unseen], keyframe.moved[~unseen])
        again, seen = world.look(keyframe.stop.window)
        assert seen.all() and torch.equal(again[~unseen], keyframe.image[~unseen])
    first = next(paint(World(texture()), path, vandal))
    assert first.new == pytest.approx(0.25, abs=0.025)  # whole pixels: not exactly


@pytest.mark.parametrize(("name", "kept", "shown"), [
    ("right", np.s_[:, :, 16:], np.s_[:, :, :-16]), ("left", np.s_[:, :, :-16], np.s_[:, :, 16:]),
    ("down", np.s_[:, 16:], np.s_[:, :-16]), ("up", np.s_[:, :-16], np.s_[:, 16:]),
    ("down-right", np.s_[:, 9:, 9:], np.s_[:, :-9, :-9]), ("up-left", np.s_[:, :-9, :-9], np.s_[:, 9:, 9:]),
])  # fmt: skip
def test_a_moved_picture_is_the_picture_bit_for_bit(name, kept, shown):
    picture = texture()
    first = next(paint(World(picture), Path.plan(Move.parse(name), SIZE, SIZE), fill.nearest))
    assert torch.equal(first.moved[shown], picture[kept])
    assert not first.mask[shown].any() and first.mask.sum() == SIZE**2 - picture[kept][0].numel()


def test_zoom_in_ends_with_the_picture_and_a_way_back_finds_what_it_left():
    assert torch.equal(shot("zoom-in")[0][-1], texture())
    assert torch.equal(shot("zoom-out")[0][0], texture())
    frames, path, keyframes = shot("right,left", 9)
    assert path.returns and torch.equal(frames[0], frames[-1]) and torch.allclose(frames[2], frames[6], atol=1e-6)
    assert [k.new > 0 for k in keyframes] == [True, True, False, False]


def test_corners_are_painted_only_where_a_slanting_way_needs_them():
    stops = Path.plan(Move.parse("down-right:1,right:1"), SIZE, SIZE).stops()
    assert [(s.name, s.corner) for s in stops] == [("down-right", False), ("down-right", True), ("down-right", True), ("right", False)]
    world, path = World(texture()), Path.plan(Move.parse("down-right:1"), SIZE, SIZE)
    with pytest.raises(ValueError, match="nobody has painted"):
        list(shoot(world, path, [0.5]))


def test_picture_need_not_be_square():
    frames, path, keyframes = shot("up-right,zoom-out:1,ring", 7, picture=texture()[:, :40])
    assert frames[0].shape == (3, 40, 64)
    assert keyframes[0].new == pytest.approx(0.25, abs=0.02) and path.legs[0].end.x == -path.legs[0].end.y  # 45 degrees


def test_engines_get_prompt_and_a_seed_of_their_own():
    def run(seed):
        calls = []

        def engine(image, mask, prompt, seed):
            calls.append((prompt, seed))
            return image

        list(paint(World(texture()), Path.plan(Move.parse("right:3"), SIZE, SIZE), engine, "米饭", seed))
        return calls

    assert run(0) == run(0) and not set(run(0)) & set(run(1))
    assert {prompt for prompt, _ in run(0)} == {"米饭"} and len(set(run(0))) == 3


def test_fills_continue_the_edge():
    ramp = torch.linspace(-1, 1, 32).expand(3, 32, 32).clone()
    mask = torch.zeros(1, 32, 32)
    mask[..., 24:] = 1
    assert torch.equal(fill.nearest(ramp, mask)[..., 24:], ramp[..., 23:24].expand(3, 32, 8))
    assert torch.equal(fill.reflect(ramp, mask)[..., 24:], ramp[..., 15:23].flip(-1))
    assert fill.reflect(ramp, torch.zeros(1, 32, 32)).equal(ramp)
    with pytest.raises(UserError, match="covers the whole picture"):
        fill.nearest(ramp, torch.ones(1, 32, 32))


# --- masks


def test_overlay_keeps_every_unmasked_bit():
    picture, painted = texture(), torch.full((3, SIZE, SIZE), float("nan"))
    mask = torch.zeros(1, SIZE, SIZE)
    mask[:, 20:40, 10:50] = 1
    painted[:, 20:40, 10:50] = 0.5
    result = masks.overlay(picture, painted, mask)
    assert torch.equal(result[:, 20:40, 10:50], painted[:, 20:40, 10:50])
    assert torch.equal(result[mask.expand(3, -1, -1) == 0], picture[mask.expand(3, -1, -1) == 0])


def test_soft_edges():
    mask = torch.zeros(1, 32, 32)
    mask[..., 16:] = 1
    soft, inner = masks.blurred(mask, 2), masks.feathered(mask, 3)
    assert 0.35 < soft[0, 5, 15] < 0.5 < soft[0, 5, 16] < 0.65 and soft[0, 5, 0] == 0 and soft[0, 5, -1] == 1
    assert (inner[..., :16] == 0).all() and inner[0, 5, 15:21].tolist() == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1])
    assert masks.blurred(mask, 0).equal(mask) and masks.feathered(mask, 0).equal(mask)


def test_matched_colours_close_a_seam_of_another_tint():
    picture = texture() * 0.5
    mask = torch.zeros(1, SIZE, SIZE)
    mask[..., 40:] = 1
    tinted = picture + 0.3
    pasted = masks.overlay(picture, tinted, mask)
    better = masks.overlay(picture, masks.matched(picture, tinted, mask), mask)
    assert masks.seam(pasted, mask) > 2 > 1.3 > masks.seam(better, mask)
    assert torch.equal(better[..., :40], picture[..., :40])


def test_seam():
    mask = torch.zeros(1, SIZE, SIZE)
    mask[..., 40:] = 1
    natural = [masks.seam(texture(seed=s), mask) for s in range(12)]
    hard = [masks.seam(masks.overlay(texture(seed=s), texture(seed=s + 50), mask), mask) for s in range(12)]
    assert np.mean(natural) == pytest.approx(1, abs=0.1) and max(natural) < 1.5 < 3 < min(hard)
    flat = torch.zeros(3, SIZE, SIZE)
    assert masks.seam(flat, mask) == 1 and masks.seam(flat + mask, mask) > 50
    assert masks.seam(texture(), torch.zeros_like(mask)) == 1
    ramp = torch.linspace(-1, 1, SIZE).expand(3, SIZE, SIZE)  # a slope is no seam
    assert masks.seam(ramp, mask) == 1 and masks.seam(ramp.transpose(1, 2), mask) == 1


@pytest.mark.parametrize("size", [(32, 32), (48, 48), (32, 48), (96, 64)])
@pytest.mark.parametrize("padding", [0, 8, 500])
def test_cropped_inpainting_changes_nothing_but_the_mask(size, padding):
    picture, seen = texture(80), []
    mask = torch.zeros(1, 80, 80)
    mask[:, 50:60, 5:25] = 1

    def red(image, hole, prompt, seed):
        seen.append((image.shape, hole.shape, set(hole.unique().tolist()), prompt, seed))
        return torch.tensor([1.0, -1, -1])[:, None, None].expand_as(image) * hole - (1 - hole)  # and it spoils the rest

    result = masks.inpaint_cropped(red, picture, mask, "葱", 5, size, padding)
    known = (mask == 0).expand(3, -1, -1)
    assert torch.equal(result[known], picture[known]) and not torch.equal(result, picture)
    assert (result[0, 52:58, 8:22] > 0.8).all()
    assert seen == [((3, *size), (1, *size), {0.0, 1.0}, "葱", 5)]
    assert torch.equal(picture, texture(80))  # the argument is left alone


def test_box_around():
    mask = torch.zeros(1, 40, 60)
    assert masks.box_around(mask, 4, 1) is None
    mask[:, 2:6, 50:60] = 1
    assert masks.box_around(mask, 0, 1) == masks.Box(0, 50, 10, 60)
    assert masks.box_around(mask, 4, 1) == masks.Box(0, 46, 14, 60)
    assert masks.box_around(mask, 1000, 1) == masks.Box(0, 0, 40, 60)


def test_sizes_that_a_network_cannot_halve():
    masks.check_size(64, 128, 16)
    with pytest.raises(UserError, match="divisible by 16.*try 96 x 64"):
        masks.check_size(100, 64, 16)


# --- loops


@pytest.mark.parametrize("ease", loops.EASES)
def test_eases_go_from_start_to_end(ease):
    values = np.array([loops.EASES[ease](t) for t in np.linspace(0, 1, 101)])
    assert values[0] == 0 and values[-1] == 1 and (np.diff(values) > 0).all()
    assert np.allclose(values + values[::-1], 1)
    speed = np.diff(values) * 100
    assert speed.max() < (1.01 if ease == "linear" else 1.51) and (ease == "linear" or speed[0] < 0.1)
    assert ease != "ends" or np.ptp(speed[21:79]) < 1e-9  # the same speed for most of the time


@pytest.mark.parametrize(("text", "loop"), [
    ("right", "pingpong"), ("zoom-in", "pingpong"), ("ring", "seamless"), ("right,left", "seamless"), ("up", "seamless"),
    ("zoom-out:3", "seamless"), ("right:5", "round"), ("up:8", "round"), ("down-left:9", "round"),
])  # fmt: skip
def test_loops_have_no_jump_from_the_last_frame_to_the_first(text, loop):
    soft = torch.from_numpy(gaussian_filter(texture().numpy(), (0, 3, 3))) * 2
    frames, _, _ = shot(text, 16, loop, picture=soft.clamp(-1, 1))
    steps = loops.steps(frames)
    assert len(frames) == 16 and steps[-1] < 1.3 * max(steps[:-1])
    if text not in ("ring", "right,left"):  # the same move without a loop does jump
        once = loops.steps(shot(text, 24, picture=soft.clamp(-1, 1))[0])
        assert once[-1] > 1.5 * max(once[:-1])


def test_loops_begin_where_they_end():
    there_and_back = shot("right", 12, "pingpong")[0]
    assert all(torch.equal(there_and_back[k], there_and_back[-k]) for k in range(1, 6))
    path = Path.plan(Move.parse("left:5"), SIZE, SIZE).around()
    world = World(texture())
    list(paint(world, path, fill.reflect))
    assert path.returns and torch.equal(world.look(path.at(1))[0], texture())
    around = shot("left:5", 30, "round")[0]
    directions = [motion(a, b)[0] for a, b in zip(around, around[1:] + around[:1], strict=True)]
    assert all(shift[0] > 1 for shift in directions)  # always on, never back
    dissolved = shot("right", 16, "seamless")[0]
    assert all(motion(a, b)[0][0] < -0.5 for a, b in zip(dissolved, dissolved[1:] + dissolved[:1], strict=True))


def test_round_world_is_closed_with_both_ends_in_sight():
    for text in ("right:5", "right:8", "right:11", "down:6"):
        keyframes = shot(text, 4, "round")[2]
        last = [k for k in keyframes if k.new][-1].mask[0].bool()
        edges = (last[:, 0], last[:, -1]) if text.startswith("right") else (last[0], last[-1])
        assert not edges[0].any() and not edges[1].any()


def test_clock():
    assert loops.clock(5) == [0, 0.25, 0.5, 0.75, 1]
    assert loops.clock(4, "pingpong") == [0, 0.5, 1, 0.5]
    assert loops.clock(4, "seamless", returns=True) == [0, 0.25, 0.5, 0.75]
    assert len(loops.clock(12, "seamless")) == 15 and len(loops.clock(12, "seamless", dissolve=2)) == 14


# --- films


@pytest.fixture(scope="module")
def frames():
    soft = torch.from_numpy(gaussian_filter(texture().numpy(), (0, 1.5, 1.5))) * 1.5
    return shot("right,zoom-out", 8, "pingpong", picture=soft.clamp(-1, 1))[0]


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
@pytest.mark.parametrize("fps", [8, 24])
def test_film_has_frames_speed_and_size(frames, tmp_path, suffix, fps):
    written = film.save_film(frames, tmp_path / f"film{suffix}", fps=fps)
    picture, durations = Image.open(written.path), []
    for k in range(picture.n_frames):
        picture.seek(k)
        picture.load()
        durations.append(picture.info["duration"])
        error = np.abs(np.asarray(picture.convert("RGB"), float) - film.to_pixels(frames)[k]).mean()
        assert error < {".gif": 10, ".webp": 8, ".png": 0.01}[suffix]
    assert (picture.n_frames, picture.size, picture.info["loop"]) == (8, (64, 64), 0)
    assert sum(durations) == pytest.approx(8000 / fps, abs=6)
    assert (written.frames, written.width, written.height, written.note) == (8, 64, 64, "")
    assert written.bytes == written.path.stat().st_size and [p.name for p in tmp_path.iterdir()] == [f"film{suffix}"]


def test_mp4(frames, tmp_path):
    import imageio.v3 as iio

    odd = [frame[:, :63, :61] for frame in frames]  # H.264 has even sizes only
    written = film.save_film(odd, tmp_path / "film.mp4", fps=24)
    pixels, facts = iio.imread(written.path, plugin="FFMPEG"), iio.immeta(written.path, plugin="FFMPEG")
    assert pixels.shape == (8, 64, 62, 3) and facts["fps"] == 24 and facts["codec"] == "h264"
    assert np.abs(pixels[:, :63, :61].astype(float) - film.to_pixels(odd)).mean() < 12


def test_mp4_without_its_package(frames, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(UserError, match="pip install imageio-ffmpeg"):
        film.save_film(frames, tmp_path / "film.mp4")


def test_film_that_plays_once(frames, tmp_path):
    for suffix in (".gif", ".webp", ".png"):
        assert Image.open(film.save_film(frames, tmp_path / f"film{suffix}", loop=False).path).info.get("loop", 1) == 1


def local_palettes(data: bytes) -> int:
    """How many frames of a GIF bring a palette of their own."""
    at, found = 13 + (3 << (data[10] & 7) + 1) * (data[10] >> 7), 0
    while data[at] != 0x3B:
        if data[at] == 0x21:
            at += 2
        else:
            flags = data[at + 9]
            found += flags >> 7
            at += 11 + (3 << (flags & 7) + 1) * (flags >> 7)
        while data[at]:
            at += data[at] + 1
        at += 1
    return found


def test_gif_palettes_and_dithers(frames, tmp_path):
    errors, sizes = {}, {}
    for palette in film.PALETTES:
        for dither in film.DITHERS:
            written = film.save_gif(frames, tmp_path / f"{palette}-{dither}.gif", colours=32, palette=palette, dither=dither)
            assert local_palettes(written.path.read_bytes()) == (0 if palette == "global" else 7)
            picture, pixels = Image.open(written.path), film.to_pixels(frames)
            shown = []
            for k in range(8):
                picture.seek(k)
                shown.append(np.asarray(picture.convert("RGB"), float))
            blurred = [gaussian_filter(np.stack(x).astype(float), (0, 2, 2, 0)) for x in (shown, pixels)]  # what the eye sees
            errors[palette, dither] = np.abs(blurred[0] - blurred[1]).mean()
            sizes[palette, dither] = written.bytes
    for palette in film.PALETTES:
        assert errors[palette, "floyd"] < errors[palette, "ordered"] < errors[palette, "none"]
        assert sizes[palette, "none"] < sizes[palette, "ordered"] < 1.1 * sizes[palette, "floyd"]
    assert sizes["global", "none"] < sizes["frame", "none"]


def test_film_below_a_size(frames, tmp_path):
    whole = film.save_gif(frames, tmp_path / "whole.gif")
    fewer = film.save_gif(frames, tmp_path / "fewer.gif", max_bytes=int(whole.bytes * 0.7))
    assert fewer.bytes <= whole.bytes * 0.7 and fewer.width == 64 and "instead of 256 colours" in fewer.note
    small = film.save_gif(frames, tmp_path / "small.gif", max_bytes=int(whole.bytes * 0.2))
    assert small.bytes <= whole.bytes * 0.2 and small.width < 64 and "of its size" in str(small) and small.frames == 8
    webp = film.save_film(frames, tmp_path / "small.webp", max_bytes=9000)
    assert webp.bytes <= 9000 and "quality" in webp.note
    with pytest.raises(UserError, match="do not fit into 500 bytes"):
        film.save_film(frames, tmp_path / "none.png", max_bytes=500)
    assert not (tmp_path / "none.png").exists()


def test_contact_sheet():
    keyframes = shot("right:2,down-right:1")[2]
    sheet = film.contact_sheet(texture(), keyframes, height=64, columns=3)
    assert sheet.size == (6 + 3 * 70, 6 + 16 + 70 + 2 * (16 + 3 * 70 + 6))  # five things in two rows
    assert sheet.getpixel((6 + 60, 22 + 70 + 22 + 70 + 30)) == (255, 255, 255)  # the mask: white is repaint, at the right
    assert sheet.getpixel((6 + 20, 22 + 70 + 22 + 70 + 30)) == (0, 0, 0)


# --- bad input


def test_moves_as_a_chinese_keyboard_writes_them():
    assert str(Move.parse("right：3，zoom-out、ring")) == str(Move.parse("right:3,zoom-out,ring"))


@pytest.mark.parametrize(("text", "message"), [
    ("sideways", "unknown camera move 'sideways'; choose one of up, down, left, right, up-left.*ring"),
    ("", "unknown camera move ''"), ("right,,up", "unknown camera move ''"),
    ("right:x", "whole number of keyframes"), ("right:", "whole number"), ("right:0", "1 to 64"), ("right:65", "1 to 64"),
    ("right:-1", "whole number"), ("ring:6", "4, 8, 12"),
])  # fmt: skip
def test_moves_that_are_none(text, message):
    with pytest.raises(UserError, match=message):
        Move.parse(text)


def test_moves_are_read_as_they_are_written():
    move = Move.parse(" Right:3, zoom_out ,ring")
    assert move.steps == (Step("right", 3), Step("zoom-out", 2), Step("ring", 4)) and str(move) == "right:3,zoom-out:2,ring:4"
    assert len(camera.MOVES) == 11 and Move.parse(str(move)) == move


@pytest.mark.parametrize(("call", "message"), [
    (lambda: World(torch.zeros(3, 8, 64)), "at least 16 pixels"),
    (lambda: World(torch.zeros(64, 64)), "1 or 3"),
    (lambda: World(texture() * 200), "from -1 to 1"),
    (lambda: World(texture() * float("nan")), "from -1 to 1"),
    (lambda: World(texture(), "nearest"), "unknown kernel"),
    (lambda: Path.plan(Move.parse("up"), 64, 64, share=0.9), "0.01 to 0.75"),
    (lambda: Path.plan(Move.parse("up:3"), 64, 64).around(), "write up:5 or more"),
    (lambda: Path.plan(Move.parse("ring"), 64, 64).around(), "straight to one side"),
    (lambda: loops.clock(1), "at least 2"),
    (lambda: loops.clock(8, "forever"), "unknown loop"),
    (lambda: loops.clock(8, ease="bounce"), "unknown ease"),
    (lambda: loops.clock(8, "seamless", dissolve=5), "1 to 4"),
    (lambda: film.check_memory(100_000, 512, 512), "GiB of memory.*at most --frames 390"),
    (lambda: film.check_memory(24, 64, 64, budget=1000), "a smaller --size"),
    (lambda: film.milliseconds(3, 0), "--fps must be"),
])  # fmt: skip
def test_bad_input_is_told_in_a_sentence(call, message):
    with pytest.raises(UserError, match=message):
        call()


@pytest.mark.parametrize(("name", "options", "message"), [
    ("film.avi", {}, "end it in .gif"), ("film.gif", {"fps": 60}, "50 frames a second"), ("film.gif", {"colours": 500}, "4 to 256"),
    ("film.gif", {"palette": "nice"}, "one of global, frame"),
])  # fmt: skip
def test_films_that_cannot_be(frames, tmp_path, name, options, message):
    with pytest.raises(UserError, match=message):
        film.save_film(frames, tmp_path / name, **options)
    with pytest.raises(UserError, match="at least 2 frames"):
        film.save_film(frames[:1], tmp_path / "film.gif")


def test_engine_that_gives_back_something_else():
    path = Path.plan(Move.parse("up"), SIZE, SIZE)
    with pytest.raises(ValueError, match="gave back"):
        next(paint(World(texture()), path, lambda image, *_: image[:, :32]))
    with pytest.raises(UserError, match="the inpainting engine returned NaN or infinite values"):
        next(paint(World(texture()), path, lambda image, *_: image * float("nan")))


def test_memory_is_known_beforehand():
    assert film.check_memory(24, 128, 128, keyframes=4) < 16 * 2**20
