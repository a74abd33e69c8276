"""The camera without a network: directions as measured in the pictures, even speed, masks, and loops."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from common.errors import UserError
from helpers.chapter_06 import SIZE, film_of, scene, texture
from inpaint_gif.animation import camera, writers
from inpaint_gif.animation.camera import CameraPath, Move, MoveStep, paint, render_frames
from inpaint_gif.animation.canvas import FilmCanvas, Window
from inpaint_gif.animation.motion import motion
from inpaint_gif.animation.timing import EASES, frame_changes, frame_times
from inpaint_gif.inpainting import edge_fill


@pytest.mark.parametrize("shift", [(0, 0), (1, 0), (0, 1.6), (-2.37, 0), (0.31, 0.22), (2.5, -3.3), (5, 4)])
@pytest.mark.parametrize("growth", [0, 0.02, -0.03])
def test_motion_is_measured_as_it_was_made(shift, growth):
    """Seen through a window that stands elsewhere and covers less,
    what is there is exactly as far away and as large as it should be.
    """
    before, after = Window(3, 1), Window(3 - shift[0] / (1 + growth), 1 - shift[1] / (1 + growth), 1 / (1 + growth))
    found, grown = motion(*(scene(window, waves=300, fine=2) for window in (before, after)))
    assert found == pytest.approx(shift, abs=0.1 if growth else 0.03) and grown == pytest.approx(growth, abs=0.001)


@pytest.mark.parametrize("name", camera.PANS)
def test_content_moves_against_the_camera(name):
    frames, path, _ = film_of(name)
    direction = -np.array(camera.PANS[name], float)
    direction /= np.linalg.norm(direction)
    speed = path.lengths.sum() / (len(frames) - 1)
    for a, b in zip(frames, frames[1:], strict=False):
        shift, growth = motion(a, b)
        assert shift @ direction / np.linalg.norm(shift) > math.cos(math.radians(6)), (name, shift)
        assert np.linalg.norm(shift) == pytest.approx(speed, abs=0.12) and abs(growth) < 0.01


@pytest.mark.parametrize(("name", "sign"), [("zoom-in", 1), ("zoom-out", -1)])
def test_content_grows_or_shrinks_by_the_same_ratio_in_every_frame(name, sign):
    frames, path, _ = film_of(name + ":3")
    ratio = (path.segments[0].start.scale / path.segments[-1].end.scale) ** (1 / (len(frames) - 1))
    for a, b in zip(frames, frames[1:], strict=False):
        shift, growth = motion(a, b)
        assert np.sign(growth) == sign and growth == pytest.approx(ratio - 1, abs=0.25 * abs(ratio - 1))
        assert np.linalg.norm(shift) < 0.3


@pytest.mark.parametrize("keyframes", [4, 8])
def test_ring_turns_clockwise_at_constant_speed(keyframes):
    frames, path, _ = film_of(f"ring:{keyframes}", 4 * keyframes, "seamless")
    for k, (a, b) in enumerate(zip(frames, frames[1:] + frames[:1], strict=True)):  # from the last to the first, too
        shift, growth = motion(a, b)
        angle = 2 * math.pi * (k + 0.5) / len(frames)  # the camera goes to (cos, sin): right first, then down
        assert -shift @ (math.cos(angle), math.sin(angle)) / np.linalg.norm(shift) > math.cos(math.radians(8))
        assert np.linalg.norm(shift) == pytest.approx(path.lengths.sum() / len(frames), abs=0.15)


def test_chain_does_one_move_after_the_other():
    frames, path, keyframes = film_of("right,zoom-out,up", 29)
    assert [k.stop.name for k in keyframes] == ["right", "right", "zoom-out", "zoom-out", "up", "up"]
    ends = np.cumsum(path.lengths) / path.lengths.sum() * 28
    seen = {
        name: [motion(frames[k], frames[k + 1]) for k in range(28) if start <= k and k + 1 <= end]
        for name, start, end in (("right", 0, ends[1]), ("zoom-out", ends[1], ends[3]), ("up", ends[3], 28))
    }
    assert all(len(pairs) > 1 for pairs in seen.values())
    assert all(shift[0] < -1 and abs(shift[1]) < 0.2 for shift, _ in seen["right"])
    assert all(growth < -0.02 for _, growth in seen["zoom-out"])
    assert all(shift[1] > 1 and abs(shift[0]) < 0.2 for shift, _ in seen["up"])


@pytest.mark.parametrize(
    "text", [*camera.MOVES, "ring:8", "right:3,zoom-out,down-left", "zoom-in,right", "zoom-out,zoom-in"]
)
def test_film_is_the_scene_if_the_engine_paints_the_scene(text):
    """The whole chain, against the truth: windows, resampling, masks, order of painting, joints between pictures."""
    path = CameraPath.plan(Move.parse(text), SIZE, SIZE)
    canvas, stops = FilmCanvas(scene(Window())), iter(path.stops())
    pending = []

    def oracle(image, mask, prompt, seed):
        return scene(pending[-1])

    keyframes, painter = [], paint(canvas, path, oracle)
    for stop in stops:
        pending.append(stop.window)
        keyframes.append(next(painter))
    times = frame_times(17)
    for time, frame in zip(times, render_frames(canvas, path, times), strict=True):
        error = (frame - scene(path.at(time))).abs()
        assert error.mean() < 0.01 and error.max() < 0.12, (time, float(error.mean()), float(error.max()))
    assert next(painter, None) is None


def test_equal_times_move_the_picture_equally():
    path = CameraPath.plan(Move.parse("right:2,zoom-out:2,down-left,ring"), 48, 64)
    passed, windows = np.cumsum([0, *path.lengths]), [path.at(k / 400) for k in range(401)]
    moved = [camera.Segment("", a, b).length(48, 64) for a, b in zip(windows, windows[1:], strict=False)]
    joints = {int(p / passed[-1] * 400) for p in passed}
    inner = [m for k, m in enumerate(moved) if k not in joints]
    assert np.ptp(inner) < 0.01 * np.mean(inner)
    assert path.segments[0].end.x == 16 and path.segments[-1].end.same_as(path.segments[-4].start)


def test_motion_is_smooth_below_a_pixel():
    """At a third of a pixel per frame, every frame differs from the last one, and by nearly the same amount."""
    picture = torch.from_numpy(gaussian_filter(texture().numpy(), (0, 1.5, 1.5)))
    frames, path, _ = film_of("right:1", 49, picture=picture)
    assert path.lengths.sum() / 48 == pytest.approx(1 / 3)
    steps = np.array(frame_changes(frames, looped=False))
    assert steps.max() / steps.min() < 1.25
    sharp = np.array([float((f[..., 1:] - f[..., :-1]).square().mean()) for f in frames])
    assert sharp.min() / sharp.max() > 0.9  # no breathing between sharp and soft


@pytest.mark.parametrize("text", camera.MOVES)
def test_masks_are_what_is_not_seen_and_the_rest_is_kept(text):
    noise = torch.Generator().manual_seed(1)
    path, canvas = CameraPath.plan(Move.parse(text), SIZE, SIZE), FilmCanvas(texture())

    def vandal(image, mask, prompt, seed):
        return torch.rand(image.shape, generator=noise) * 2 - 1

    for keyframe in paint(canvas, path, vandal):
        unseen = keyframe.mask.bool().expand(3, -1, -1)
        assert set(keyframe.mask.unique().tolist()) <= {0.0, 1.0}
        assert (keyframe.moved[unseen] == 0).all() and not (keyframe.moved[~unseen] == 0).any()
        assert torch.equal(keyframe.image[~unseen], keyframe.moved[~unseen])
        again, seen = canvas.render(keyframe.stop.window)
        assert seen.all() and torch.equal(again[~unseen], keyframe.image[~unseen])
    first = next(paint(FilmCanvas(texture()), path, vandal))
    assert first.new == pytest.approx(0.25, abs=0.025)  # whole pixels: not exactly


@pytest.mark.parametrize(
    ("name", "kept", "shown"),
    [
        ("right", np.s_[:, :, 16:], np.s_[:, :, :-16]),
        ("left", np.s_[:, :, :-16], np.s_[:, :, 16:]),
        ("down", np.s_[:, 16:], np.s_[:, :-16]),
        ("up", np.s_[:, :-16], np.s_[:, 16:]),
        ("down-right", np.s_[:, 9:, 9:], np.s_[:, :-9, :-9]),
        ("up-left", np.s_[:, :-9, :-9], np.s_[:, 9:, 9:]),
    ],
)
def test_a_moved_picture_is_the_picture_bit_for_bit(name, kept, shown):
    picture = texture()
    first = next(paint(FilmCanvas(picture), CameraPath.plan(Move.parse(name), SIZE, SIZE), edge_fill.nearest))
    assert torch.equal(first.moved[shown], picture[kept])
    assert not first.mask[shown].any() and first.mask.sum() == SIZE**2 - picture[kept][0].numel()


def test_zoom_in_ends_with_the_picture_and_a_way_back_finds_what_it_left():
    assert torch.equal(film_of("zoom-in")[0][-1], texture())
    assert torch.equal(film_of("zoom-out")[0][0], texture())
    frames, path, keyframes = film_of("right,left", 9)
    assert path.returns and torch.equal(frames[0], frames[-1]) and torch.allclose(frames[2], frames[6], atol=1e-6)
    assert [k.new > 0 for k in keyframes] == [True, True, False, False]


def test_corners_are_painted_only_where_a_slanting_way_needs_them():
    stops = CameraPath.plan(Move.parse("down-right:1,right:1"), SIZE, SIZE).stops()
    assert [(s.name, s.corner) for s in stops] == [
        ("down-right", False),
        ("down-right", True),
        ("down-right", True),
        ("right", False),
    ]
    canvas, path = FilmCanvas(texture()), CameraPath.plan(Move.parse("down-right:1"), SIZE, SIZE)
    with pytest.raises(ValueError, match="is not painted"):
        list(render_frames(canvas, path, [0.5]))


def test_picture_need_not_be_square():
    frames, path, keyframes = film_of("up-right,zoom-out:1,ring", 7, picture=texture()[:, :40])
    assert frames[0].shape == (3, 40, 64)
    # 45 degrees
    assert keyframes[0].new == pytest.approx(0.25, abs=0.02) and path.segments[0].end.x == -path.segments[0].end.y


def test_engines_get_prompt_and_a_seed_of_their_own():
    def run(seed):
        calls = []

        def engine(image, mask, prompt, seed):
            calls.append((prompt, seed))
            return image

        list(paint(FilmCanvas(texture()), CameraPath.plan(Move.parse("right:3"), SIZE, SIZE), engine, "米饭", seed))
        return calls

    assert run(0) == run(0) and not set(run(0)) & set(run(1))
    assert {prompt for prompt, _ in run(0)} == {"米饭"} and len(set(run(0))) == 3


@pytest.mark.parametrize("ease", EASES)
def test_eases_go_from_start_to_end(ease):
    values = np.array([EASES[ease](t) for t in np.linspace(0, 1, 101)])
    assert values[0] == 0 and values[-1] == 1 and (np.diff(values) > 0).all()
    assert np.allclose(values + values[::-1], 1)
    speed = np.diff(values) * 100
    assert speed.max() < (1.01 if ease == "linear" else 1.51) and (ease == "linear" or speed[0] < 0.1)
    assert ease != "ends" or np.ptp(speed[21:79]) < 1e-9  # the same speed for most of the time


@pytest.mark.parametrize(
    ("text", "loop"),
    [
        ("right", "pingpong"),
        ("zoom-in", "pingpong"),
        ("ring", "seamless"),
        ("right,left", "seamless"),
        ("up", "seamless"),
        ("zoom-out:3", "seamless"),
        ("right:5", "round"),
        ("up:8", "round"),
        ("down-left:9", "round"),
    ],
)
def test_loops_have_no_jump_from_the_last_frame_to_the_first(text, loop):
    soft = torch.from_numpy(gaussian_filter(texture().numpy(), (0, 3, 3))) * 2
    frames, _, _ = film_of(text, 16, loop, picture=soft.clamp(-1, 1))
    steps = frame_changes(frames)
    assert len(frames) == 16 and steps[-1] < 1.3 * max(steps[:-1])
    if text not in ("ring", "right,left"):  # the same move without a loop does jump
        once = frame_changes(film_of(text, 24, picture=soft.clamp(-1, 1))[0])
        assert once[-1] > 1.5 * max(once[:-1])


def test_loops_begin_where_they_end():
    there_and_back = film_of("right", 12, "pingpong")[0]
    assert all(torch.equal(there_and_back[k], there_and_back[-k]) for k in range(1, 6))
    path = CameraPath.plan(Move.parse("left:5"), SIZE, SIZE).around()
    canvas = FilmCanvas(texture())
    list(paint(canvas, path, edge_fill.reflect))
    assert path.returns and torch.equal(canvas.render(path.at(1))[0], texture())
    around = film_of("left:5", 30, "round")[0]
    directions = [motion(a, b)[0] for a, b in zip(around, around[1:] + around[:1], strict=True)]
    assert all(shift[0] > 1 for shift in directions)  # always on, never back
    dissolved = film_of("right", 16, "seamless")[0]
    assert all(motion(a, b)[0][0] < -0.5 for a, b in zip(dissolved, dissolved[1:] + dissolved[:1], strict=True))


def test_round_world_is_closed_with_both_ends_in_sight():
    for text in ("right:5", "right:8", "right:11", "down:6"):
        keyframes = film_of(text, 4, "round")[2]
        last = [k for k in keyframes if k.new][-1].mask[0].bool()
        edges = (last[:, 0], last[:, -1]) if text.startswith("right") else (last[0], last[-1])
        assert not edges[0].any() and not edges[1].any()


def test_clock():
    assert frame_times(5) == [0, 0.25, 0.5, 0.75, 1]
    assert frame_times(4, "pingpong") == [0, 0.5, 1, 0.5]
    assert frame_times(4, "seamless", returns=True) == [0, 0.25, 0.5, 0.75]
    assert len(frame_times(12, "seamless")) == 15


def test_moves_as_a_chinese_keyboard_writes_them():
    assert str(Move.parse("right：3，zoom-out、ring")) == str(Move.parse("right:3,zoom-out,ring"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sideways", "unknown camera move 'sideways'; choose one of up, down, left, right, up-left.*ring"),
        ("", "unknown camera move ''"),
        ("right,,up", "unknown camera move ''"),
        ("right:x", "whole number of keyframes"),
        ("right:", "whole number"),
        ("right:0", "1 to 64"),
        ("right:65", "1 to 64"),
        ("right:-1", "whole number"),
        ("ring:6", "4, 8, 12"),
    ],
)
def test_moves_that_are_none(text, message):
    with pytest.raises(UserError, match=message):
        Move.parse(text)


def test_moves_are_read_as_they_are_written():
    move = Move.parse(" Right:3, zoom_out ,ring")
    assert (
        move.steps == (MoveStep("right", 3), MoveStep("zoom-out", 2), MoveStep("ring", 4))
        and str(move) == "right:3,zoom-out:2,ring:4"
    )
    assert len(camera.MOVES) == 11 and Move.parse(str(move)) == move


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FilmCanvas(torch.zeros(3, 8, 64)), "at least 16 pixels"),
        (lambda: FilmCanvas(torch.zeros(64, 64)), "1 or 3"),
        (lambda: FilmCanvas(texture() * 200), "from -1 to 1"),
        (lambda: FilmCanvas(texture() * float("nan")), "from -1 to 1"),
        (lambda: CameraPath.plan(Move.parse("up"), 64, 64, new_fraction=0.9), "0.01 to 0.75"),
        (lambda: CameraPath.plan(Move.parse("up:3"), 64, 64).around(), "write up:5 or more"),
        (lambda: CameraPath.plan(Move.parse("ring"), 64, 64).around(), "straight to one side"),
        (lambda: frame_times(1), "at least 2"),
        (lambda: frame_times(8, "forever"), "unknown loop"),
        (lambda: frame_times(8, ease="bounce"), "unknown ease"),
        (lambda: writers.check_memory(100_000, 512, 512), "GiB of memory.*at most --frames 390"),
        (lambda: writers.check_memory(24, 64, 64, budget=1000), "a smaller --size"),
        (lambda: writers.milliseconds(3, 0), "--fps must be"),
    ],
)
def test_bad_input_is_told_in_a_sentence(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_backend_that_gives_back_something_else():
    path = CameraPath.plan(Move.parse("up"), SIZE, SIZE)
    with pytest.raises(ValueError, match="and returned"):
        next(paint(FilmCanvas(texture()), path, lambda image, *_: image[:, :32]))
    with pytest.raises(UserError, match="the inpainting engine returned NaN or infinite values"):
        next(paint(FilmCanvas(texture()), path, lambda image, *_: image * float("nan")))
