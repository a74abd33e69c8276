"""Camera moves: the path of the camera, the keyframes to paint along it, and the frames of the film.

`right` means that the camera moves right: the content moves to the left, and new content enters at the right edge. The
same holds for all moves; y points down.

  up, down, left, right                     along an edge
  up-left, up-right, down-left, down-right  at 45 degrees
  zoom-out                                  the camera backs off: everything shrinks, new content enters on all sides
  zoom-in                                   the camera comes nearer: everything grows, the edges leave the picture
  ring                                      once round a circle, clockwise on the screen, from its topmost point; it
                                            starts to the right and ends where it started

A chain is written with commas, "right,zoom-out"; "right:3" is three keyframes long.

The given picture is the nearest view of the whole path, because a nearer one would need details that the picture does
not have. So `zoom-in` is painted backwards, away from the picture, and the film ends with the picture.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from torch import Tensor

from common.errors import UserError
from inpaint_gif.animation.canvas import FilmCanvas, Window
from inpaint_gif.inpainting.compositing import overlay
from inpaint_gif.inpainting.interface import InpaintingBackend

PANS = {
    "up": (0, -1),
    "down": (0, 1),
    "left": (-1, 0),
    "right": (1, 0),
    "up-left": (-1, -1),
    "up-right": (1, -1),
    "down-left": (-1, 1),
    "down-right": (1, 1),
}
ZOOMS = {"zoom-in": -1, "zoom-out": 1}
MOVES = (*PANS, *ZOOMS, "ring")
KEYFRAMES = 2  # default length of a step
RING_KEYFRAMES = 4
MOST_KEYFRAMES = 64
GAP = 0.2  # least gap of a periodic path, between its two copies of the picture, in sides of the picture


@dataclass(frozen=True)
class MoveStep:
    """One of MOVES, and its length in keyframes."""

    name: str
    keyframes: int = KEYFRAMES

    def __post_init__(self):
        if self.name not in MOVES:
            raise UserError(
                f"unknown camera move '{self.name}'; choose one of {', '.join(MOVES)}, or a chain as in right,zoom-out"
            )
        if not 1 <= self.keyframes <= MOST_KEYFRAMES:
            raise UserError(f"{self.name} must go 1 to {MOST_KEYFRAMES} keyframes far, not {self.keyframes}")
        if self.name == "ring" and self.keyframes % 4:
            raise UserError(
                f"ring needs 4, 8, 12, ... keyframes, one for each quarter or part of it, not {self.keyframes}"
            )

    @classmethod
    def parse(cls, text: str) -> "MoveStep":
        """ "right", or "right:3" for three keyframes."""
        name, colon, number = text.strip().lower().replace("_", "-").partition(":")
        if colon and not number.strip().isascii() or colon and not number.strip().isdigit():
            raise UserError(f"'{text.strip()}' must name a whole number of keyframes after the colon, as in right:3")
        return cls(name.strip(), int(number) if colon else RING_KEYFRAMES if name.strip() == "ring" else KEYFRAMES)


@dataclass(frozen=True)
class Move:
    """The moves of the camera, one after another."""

    steps: tuple[MoveStep, ...]

    @classmethod
    def parse(cls, text: str) -> "Move":
        """ "zoom-out", or a chain: "right:3,zoom-out"."""
        plain = text.translate(str.maketrans("，、：", ",,:"))  # punctuation of a Chinese keyboard
        return cls(tuple(MoveStep.parse(part) for part in plain.split(",")))

    def __str__(self) -> str:
        return ",".join(f"{step.name}:{step.keyframes}" for step in self.steps)


@dataclass(frozen=True)
class Segment:
    """The part of the path from one keyframe to the next.

    name    name of its move
    start   first window
    end     last window
    turn    angle in radians along a circle, clockwise; 0 is a straight line
    centre  centre of the circle
    """

    name: str
    start: Window
    end: Window
    turn: float = 0.0
    centre: tuple[float, float] = (0.0, 0.0)

    def at(self, t: float) -> Window:
        """The window at t, from 0 to 1. A zoom multiplies the scale by equal ratios in equal times."""
        a, b = self.start, self.end
        if self.turn:
            return rotated(a, self.centre, self.turn * t)
        scale = a.scale * (b.scale / a.scale) ** t
        return Window(a.x + (b.x - a.x) * t, a.y + (b.y - a.y) * t, scale)

    def length(self, height: int, width: int) -> float:
        """Displacement of the content along the segment, in pixels, as the mean over all pixels."""
        if self.turn:
            return (
                abs(self.turn)
                * math.hypot(self.start.x - self.centre[0], self.start.y - self.centre[1])
                / self.start.scale
            )
        across = math.hypot(self.end.x - self.start.x, self.end.y - self.start.y) / self.start.scale
        return across + abs(math.log(self.end.scale / self.start.scale)) * mean_radius(height, width)

    def corners(self) -> tuple[Window, ...]:
        """Windows onto the parts that a diagonal segment passes and that lie in neither keyframe: from A to B both
        squares C come into view.

            +-----+ C
            | A   |--+
            |     |  |
            +-----+ B|
            C +------+
        """
        diagonal = abs(self.end.x - self.start.x) > 1e-6 and abs(self.end.y - self.start.y) > 1e-6
        return (replace(self.start, x=self.end.x), replace(self.start, y=self.end.y)) if diagonal else ()


def rotated(window: Window, centre: tuple[float, float], angle: float) -> Window:
    """Move the window around the centre, clockwise on the screen (y points down),
    without turning the window itself.
    """
    x, y = window.x - centre[0], window.y - centre[1]
    cos, sin = math.cos(angle), math.sin(angle)
    return replace(window, x=centre[0] + x * cos - y * sin, y=centre[1] + x * sin + y * cos)


def mean_radius(height: int, width: int) -> float:
    """Mean distance of a pixel from the centre.
    A zoom by a ratio 1 + e moves the pixels by e times this distance on average.
    """
    y, x = np.arange(height) + 0.5 - height / 2, np.arange(width) + 0.5 - width / 2
    return float(np.hypot(y[:, None], x).mean())


def reach(dx: float, dy: float, height: int, width: int, new_fraction: float) -> float:
    """The t for which a shift by t (dx, dy) pixels makes this fraction of the picture new:

    1 - (1 - t |dx| / width) (1 - t |dy| / height) = new_fraction
    """
    a, b = abs(dx) / width, abs(dy) / height
    return 2 * new_fraction / (a + b + math.sqrt((a + b) ** 2 - 4 * a * b * new_fraction))


def segments_of(step: MoveStep, start: Window, height: int, width: int, new_fraction: float) -> Iterator[Segment]:
    """The segments of a step; each ends where this fraction of the picture is new. Pans, and the margin that a zoom
    adds, are rounded to whole pixels, so that pans need no resampling and no pixel is half new."""
    if step.name in PANS:
        dx, dy = PANS[step.name]
        pixels = max(1, round(reach(dx, dy, height, width, new_fraction))) * start.scale
        for _ in range(step.keyframes):
            end = replace(start, x=start.x + dx * pixels, y=start.y + dy * pixels)
            yield Segment(step.name, start, end)
            start = end
    elif step.name in ZOOMS:
        margin = max(1, round(width * (1 - math.sqrt(1 - new_fraction)) / 2))
        ratio = (width / (width - 2 * margin)) ** ZOOMS[step.name]
        for _ in range(step.keyframes):
            end = replace(start, scale=start.scale * ratio)
            yield Segment(step.name, start, end)
            start = end
    else:
        turn = 2 * math.pi / step.keyframes
        # for the first keyframe
        radius = reach(math.sin(turn), 1 - math.cos(turn), height, width, new_fraction) * start.scale
        centre, first = (start.x, start.y + radius), start
        for k in range(1, step.keyframes + 1):
            end = rotated(first, centre, k * turn) if k < step.keyframes else first
            yield Segment(step.name, start, end, turn, centre)
            start = end


@dataclass(frozen=True)
class Stop:
    """A window to paint. A corner is not a keyframe, but frames between two keyframes show it."""

    name: str
    window: Window
    corner: bool = False


@dataclass(frozen=True)
class CameraPath:
    """The path of the camera over the plane. The given picture is the window (0, 0, 1).

    segments       from keyframe to keyframe, in the order of the film
    home           index of the keyframe that is the given picture; 0 is the start
    height, width  size of the picture in pixels
    round          whether the picture also lies at the end of the path, see `around`
    """

    segments: tuple[Segment, ...]
    home: int
    height: int
    width: int
    round: bool = False

    @classmethod
    def plan(cls, move: Move, height: int, width: int, new_fraction: float = 0.25) -> "CameraPath":
        """Plan the path of a move. new_fraction: the part of each keyframe that is new, from 0.01 to 0.75."""
        if not 0.01 <= new_fraction <= 0.75:
            raise UserError(
                f"--new-fraction, the part of a keyframe that is new, must be from 0.01 to 0.75, not {new_fraction:g}"
            )

        def segments_from(window: Window) -> list[Segment]:
            segments = []
            for step in move.steps:
                segments += segments_of(step, segments[-1].end if segments else window, height, width, new_fraction)
            return segments

        keyframes = [Window(), *(segment.end for segment in segments_from(Window()))]
        scales = [round(math.log(window.scale), 6) for window in keyframes]
        # the nearest view is the picture: choose the start so that the path passes it
        home = scales.index(min(scales))
        x, y, scale = keyframes[home].x, keyframes[home].y, keyframes[home].scale
        return cls(tuple(segments_from(Window(-x / scale, -y / scale, 1 / scale))), home, height, width)

    @property
    def keyframes(self) -> list[Window]:
        """All keyframes in the order of the film, the given picture among them."""
        return [self.segments[0].start, *(segment.end for segment in self.segments)]

    @property
    def returns(self) -> bool:
        """Whether the end looks like the start."""
        return self.round or self.segments[-1].end.same_as(self.segments[0].start)

    def around(self) -> "CameraPath":
        """The same path on a periodic plane: a second copy of the picture lies at its end, so that a straight camera
        arrives where it started. The part between the copies is painted from both ends; the last window, where they
        meet, shows both sides.
        """
        segment = self.segments[0]
        if segment.name not in PANS or len({segment.name for segment in self.segments}) > 1:
            raise UserError(
                "--loop round needs a camera that moves straight to one side; choose --loop seamless or pingpong, or a move such as right:6"
            )
        if self.sides(self.segments[-1].end) < 1 + GAP:
            raise UserError(
                "the path is too short for --loop round, in which the picture must be out of sight before it returns; "
                f"write {segment.name}:{math.ceil((1 + GAP) / self.sides(segment.end))} or more"
            )
        return replace(self, round=True)

    def sides(self, window: Window) -> float:
        """Distance of a window from the start, in sides of the picture."""
        x, y = window.x - self.segments[0].start.x, window.y - self.segments[0].start.y
        return max(abs(x) / self.width, abs(y) / self.height)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Displacement of the content along each segment, in pixels."""
        return np.array([segment.length(self.height, self.width) for segment in self.segments])

    def at(self, t: float) -> Window:
        """The window at t, from 0 to 1. Equal steps of t displace the content by equal
        amounts, in pans and in zooms.
        """
        passed = np.concatenate([[0.0], np.cumsum(self.lengths)])
        distance = min(max(t, 0.0), 1.0) * passed[-1]
        k = min(int(np.searchsorted(passed, distance, side="right")) - 1, len(self.segments) - 1)
        return self.segments[k].at(float((distance - passed[k]) / self.lengths[k]))

    def stops(self) -> list[Stop]:
        """Windows to paint in this order: forwards from the picture to the end,
        then backwards from it to the start.
        """
        if self.round:
            return self.stops_around()
        onwards = [(segment, segment.end) for segment in self.segments[self.home :]]
        back = [(segment, segment.start) for segment in reversed(self.segments[: self.home])]
        stops = []
        for segment, end in onwards + back:
            stops.append(Stop(segment.name, end))
            stops += [Stop(segment.name, window, corner=True) for window in segment.corners()]
        return stops

    def stops_around(self) -> list[Stop]:
        """The same for a periodic path: alternately from the start and from the end,
        until one window in the middle closes the gap.
        """
        name = self.segments[0].name
        corners = [Stop(name, window, corner=True) for segment in self.segments for window in segment.corners()]
        ahead = [Stop(name, segment.end) for segment in self.segments[:-1]]
        gap, step, first = self.sides(self.segments[-1].end) - 1, self.sides(self.segments[0].end), []
        while gap > 0.5:
            first.append(ahead.pop(0 if len(first) % 2 == 0 else -1))
            gap -= step
        half = self.at(len(first) % 2 * step / self.sides(self.segments[-1].end) / 2 + 0.5)
        middle = Stop(name, replace(half, x=float(math.floor(half.x)), y=float(math.floor(half.y))))
        return [*first, middle, *ahead, *corners]


@dataclass(frozen=True)
class Keyframe:
    """A painted window.

    stop   its window, and the move it belongs to
    moved  (C, H, W) the earlier pictures seen through the window; 0 where the plane is empty
    mask   (1, H, W) 1 (white) where the plane is empty and has to be painted
    image  (C, H, W) the result; bit for bit equal to `moved` where the mask is 0
    """

    stop: Stop
    moved: Tensor
    mask: Tensor
    image: Tensor

    @property
    def new(self) -> float:
        """The fraction of the picture that is new."""
        return float(self.mask.mean())


def paint(
    canvas: FilmCanvas, path: CameraPath, backend: InpaintingBackend, prompt: str = "", seed: int = 0
) -> Iterator[Keyframe]:
    """Paint everything that the camera will show, one keyframe after another, and add it to the canvas.

    Painted parts are never painted again, so a camera that returns finds the same content.
    """
    if path.round:
        canvas.add(path.segments[-1].end, canvas.render(path.segments[0].start)[0])
    for k, stop in enumerate(path.stops()):
        moved, seen = canvas.render(stop.window)
        mask = (~seen).float()
        image = moved
        if mask.any():
            image = overlay(moved, checked_output(backend(moved, mask, prompt, keyframe_seed(seed, k)), moved), mask)
        canvas.add(stop.window, image, copy=not mask.any())
        yield Keyframe(stop, moved, mask, image)


def checked_output(painted: Tensor, like: Tensor) -> Tensor:
    """The output of a backend, clamped to [-1, 1]; a wrong shape and NaN are refused."""
    if painted.shape != like.shape:
        raise ValueError(f"the backend was given {tuple(like.shape)} and returned {tuple(painted.shape)}")
    if not painted.isfinite().all():
        raise UserError(
            "the inpainting engine returned NaN or infinite values; try a smaller guidance scale, or another model"
        )
    return painted.detach().to(like).clamp(-1, 1)


def keyframe_seed(seed: int, k: int) -> int:
    """The seed of keyframe k, a function of (seed, k) alone."""
    return int(np.random.SeedSequence([abs(seed), k]).generate_state(1)[0] >> 1)


def render_frames(canvas: FilmCanvas, path: CameraPath, times: Sequence[float]) -> Iterator[Tensor]:
    """The frames of the film, each (C, H, W), at these times of the path (timing.frame_times).
    The canvas must be painted.
    """
    for time in times:
        image, seen = canvas.render(path.at(time))
        if not seen.all():
            raise ValueError(
                f"at {time:.3f} of the path the canvas is not painted; call paint(canvas, path, ...) first"
            )
        yield image
