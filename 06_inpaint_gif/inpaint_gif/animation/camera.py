"""Camera moves: where the camera goes, what has to be painted for it, and what it sees on its way.

`right` means that the camera moves right: what is in the picture moves to the left, and something new comes in at the right
edge. So for all of them; y counts downwards.

  up, down, left, right                     along an edge
  up-left, up-right, down-left, down-right  at 45 degrees
  zoom-out                                  the camera backs off: everything shrinks, something new comes in all around
  zoom-in                                   the camera comes nearer: everything grows, what is at the edges is lost
  ring                                      once round a circle, clockwise on the screen, from its topmost point: it sets out
                                            to the right and comes back to where it was

A chain is written with commas, "right,zoom-out"; "right:3" goes three keyframes far.

The picture one starts from is the nearest the camera ever comes, for what is nearer would need details that nobody painted.
So `zoom-in` is painted backwards, away from the picture, and the film ends with it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from torch import Tensor

from common.errors import UserError
from inpaint_gif.animation.canvas import Window, World
from inpaint_gif.inpainting.compositing import overlay

PANS = {"up": (0, -1), "down": (0, 1), "left": (-1, 0), "right": (1, 0),
        "up-left": (-1, -1), "up-right": (1, -1), "down-left": (-1, 1), "down-right": (1, 1)}  # fmt: skip
ZOOMS = {"zoom-in": -1, "zoom-out": 1}
MOVES = (*PANS, *ZOOMS, "ring")
KEYFRAMES = 2  # of a step that does not say
RING_KEYFRAMES = 4
MOST_KEYFRAMES = 64
GAP = 0.2  # of the picture's side, to be painted between its two ends when the world is round


@dataclass(frozen=True)
class Step:
    """One of MOVES, and how many keyframes it goes far."""

    name: str
    keyframes: int = KEYFRAMES

    def __post_init__(self):
        if self.name not in MOVES:
            raise UserError(f"unknown camera move '{self.name}'; choose one of {', '.join(MOVES)}, or a chain as in right,zoom-out")
        if not 1 <= self.keyframes <= MOST_KEYFRAMES:
            raise UserError(f"{self.name} must go 1 to {MOST_KEYFRAMES} keyframes far, not {self.keyframes}")
        if self.name == "ring" and self.keyframes % 4:
            raise UserError(f"ring needs 4, 8, 12, ... keyframes, one for each quarter or part of it, not {self.keyframes}")

    @classmethod
    def parse(cls, text: str) -> "Step":
        """ "right", or "right:3" for three keyframes."""
        name, colon, number = text.strip().lower().replace("_", "-").partition(":")
        if colon and not number.strip().isascii() or colon and not number.strip().isdigit():
            raise UserError(f"'{text.strip()}' must name a whole number of keyframes after the colon, as in right:3")
        return cls(name.strip(), int(number) if colon else RING_KEYFRAMES if name.strip() == "ring" else KEYFRAMES)


@dataclass(frozen=True)
class Move:
    """What the camera does: one step after another."""

    steps: tuple[Step, ...]

    @classmethod
    def parse(cls, text: str) -> "Move":
        """ "zoom-out", or a chain: "right:3,zoom-out"."""
        plain = text.translate(str.maketrans("，、：", ",,:"))  # as a Chinese keyboard writes them
        return cls(tuple(Step.parse(word) for word in plain.split(",")))

    def __str__(self) -> str:
        return ",".join(f"{step.name}:{step.keyframes}" for step in self.steps)


@dataclass(frozen=True)
class Leg:
    """The way from one keyframe to the next.

    name    of the step it belongs to
    start   where it begins
    end     where it ends
    turn    the angle in radians by which it goes round a circle, clockwise; 0 is the straight way
    centre  of the circle
    """

    name: str
    start: Window
    end: Window
    turn: float = 0.0
    centre: tuple[float, float] = (0.0, 0.0)

    def at(self, share: float) -> Window:
        """The window after this share of the way. A zoom multiplies the scale by the same ratio in equal times."""
        a, b = self.start, self.end
        if self.turn:
            return rotated(a, self.centre, self.turn * share)
        scale = a.scale * (b.scale / a.scale) ** share
        return Window(a.x + (b.x - a.x) * share, a.y + (b.y - a.y) * share, scale)

    def length(self, height: int, width: int) -> float:
        """By how many pixels the picture moves on the way: the mean over all of its pixels."""
        if self.turn:
            return abs(self.turn) * math.hypot(self.start.x - self.centre[0], self.start.y - self.centre[1]) / self.start.scale
        across = math.hypot(self.end.x - self.start.x, self.end.y - self.start.y) / self.start.scale
        return across + abs(math.log(self.end.scale / self.start.scale)) * mean_radius(height, width)

    def corners(self) -> tuple[Window, ...]:
        """Windows that see what the camera passes on a slanting way and neither keyframe has: on the way from A to B both of
        the squares C come into view.

            +-----+ C
            | A   |--+
            |     |  |
            +-----+ B|
            C +------+
        """
        slanting = abs(self.end.x - self.start.x) > 1e-6 and abs(self.end.y - self.start.y) > 1e-6
        return (replace(self.start, x=self.end.x), replace(self.start, y=self.end.y)) if slanting else ()


def rotated(window: Window, centre: tuple[float, float], angle: float) -> Window:
    """Carried around the centre, clockwise on the screen (y points down); the window itself does not turn."""
    x, y = window.x - centre[0], window.y - centre[1]
    cos, sin = math.cos(angle), math.sin(angle)
    return replace(window, x=centre[0] + x * cos - y * sin, y=centre[1] + x * sin + y * cos)


def mean_radius(height: int, width: int) -> float:
    """The mean distance of a pixel from the centre: a zoom by a ratio 1 + e moves the pixels by e times that, on the mean."""
    y, x = np.arange(height) + 0.5 - height / 2, np.arange(width) + 0.5 - width / 2
    return float(np.hypot(y[:, None], x).mean())


def reach(dx: float, dy: float, height: int, width: int, share: float) -> float:
    """How many times (dx, dy) pixels one may go so that this share of the picture is new: the t with

    1 - (1 - t |dx| / width) (1 - t |dy| / height) = share
    """
    a, b = abs(dx) / width, abs(dy) / height
    return 2 * share / (a + b + math.sqrt((a + b) ** 2 - 4 * a * b * share))


def legs_of(step: Step, start: Window, height: int, width: int, share: float) -> Iterator[Leg]:
    """From keyframe to keyframe, each with this share of the picture new: to whole pixels for pans and for the margin that a
    zoom adds, so that nothing is resampled or half seen without need."""
    if step.name in PANS:
        dx, dy = PANS[step.name]
        pixels = max(1, round(reach(dx, dy, height, width, share))) * start.scale
        for _ in range(step.keyframes):
            end = replace(start, x=start.x + dx * pixels, y=start.y + dy * pixels)
            yield Leg(step.name, start, end)
            start = end
    elif step.name in ZOOMS:
        margin = max(1, round(width * (1 - math.sqrt(1 - share)) / 2))
        ratio = (width / (width - 2 * margin)) ** ZOOMS[step.name]
        for _ in range(step.keyframes):
            end = replace(start, scale=start.scale * ratio)
            yield Leg(step.name, start, end)
            start = end
    else:
        turn = 2 * math.pi / step.keyframes
        radius = reach(math.sin(turn), 1 - math.cos(turn), height, width, share) * start.scale  # for the first keyframe
        centre, first = (start.x, start.y + radius), start
        for k in range(1, step.keyframes + 1):
            end = rotated(first, centre, k * turn) if k < step.keyframes else first
            yield Leg(step.name, start, end, turn, centre)
            start = end


@dataclass(frozen=True)
class Stop:
    """Something to paint. A corner is no keyframe, but frames between two keyframes see it."""

    name: str
    window: Window
    corner: bool = False


@dataclass(frozen=True)
class Path:
    """The way of the camera over the plane, in which the given picture is the window (0, 0, 1).

    legs           from keyframe to keyframe, in the order of the film
    home           which keyframe is the given picture: 0 is the start
    height, width  of the picture
    round          the picture lies at the end too: see `around`
    """

    legs: tuple[Leg, ...]
    home: int
    height: int
    width: int
    round: bool = False

    @classmethod
    def plan(cls, move: Move, height: int, width: int, share: float = 0.25) -> "Path":
        """share: how much of a keyframe is new."""
        if not 0.01 <= share <= 0.75:
            raise UserError(f"--share, the part of a keyframe that is new, must be from 0.01 to 0.75, not {share:g}")

        def legs_from(window: Window) -> list[Leg]:
            legs = []
            for step in move.steps:
                legs += legs_of(step, legs[-1].end if legs else window, height, width, share)
            return legs

        keyframes = [Window(), *(leg.end for leg in legs_from(Window()))]
        scales = [round(math.log(window.scale), 6) for window in keyframes]
        home = scales.index(min(scales))  # the nearest it comes is the picture: start so that it gets there
        x, y, scale = keyframes[home].x, keyframes[home].y, keyframes[home].scale
        return cls(tuple(legs_from(Window(-x / scale, -y / scale, 1 / scale))), home, height, width)

    @property
    def keyframes(self) -> list[Window]:
        """All of them in the order of the film, the given picture among them."""
        return [self.legs[0].start, *(leg.end for leg in self.legs)]

    @property
    def returns(self) -> bool:
        """Whether the end looks like the start."""
        return self.round or self.legs[-1].end.same_as(self.legs[0].start)

    def around(self) -> "Path":
        """The same way in a round world: the picture lies at the end of it too, so that a camera which goes straight on arrives
        where it set out. What lies between the two is painted from both ends, and where they meet, with both in sight."""
        leg = self.legs[0]
        if leg.name not in PANS or len({leg.name for leg in self.legs}) > 1:
            raise UserError(
                "--loop round needs a camera that moves straight to one side; choose --loop seamless or pingpong, or a move such as right:6"
            )
        if self.sides(self.legs[-1].end) < 1 + GAP:
            raise UserError(
                "the way is too short for --loop round, in which the picture must be out of sight before it returns; "
                f"write {leg.name}:{math.ceil((1 + GAP) / self.sides(leg.end))} or more"
            )
        return replace(self, round=True)

    def sides(self, window: Window) -> float:
        """How far a window is from the start, in sides of the picture."""
        x, y = window.x - self.legs[0].start.x, window.y - self.legs[0].start.y
        return max(abs(x) / self.width, abs(y) / self.height)

    @cached_property
    def lengths(self) -> np.ndarray:
        """By how many pixels the picture moves on each leg."""
        return np.array([leg.length(self.height, self.width) for leg in self.legs])

    def at(self, share: float) -> Window:
        """The window after this share of the whole way: equal shares move the picture by equal amounts, pan or zoom."""
        passed = np.concatenate([[0.0], np.cumsum(self.lengths)])
        way = min(max(share, 0.0), 1.0) * passed[-1]
        k = min(int(np.searchsorted(passed, way, side="right")) - 1, len(self.legs) - 1)
        return self.legs[k].at(float((way - passed[k]) / self.lengths[k]))

    def stops(self) -> list[Stop]:
        """What to paint, in this order: forwards from the picture to the end, then backwards from it to the start."""
        if self.round:
            return self.stops_around()
        onwards = [(leg, leg.end) for leg in self.legs[self.home :]]
        back = [(leg, leg.start) for leg in reversed(self.legs[: self.home])]
        return [stop for leg, end in onwards + back
                for stop in (Stop(leg.name, end), *(Stop(leg.name, window, corner=True) for window in leg.corners()))]  # fmt: skip

    def stops_around(self) -> list[Stop]:
        """In turn from the start and from the end, until one window in the middle sees both of them and closes the gap."""
        name, corners = self.legs[0].name, [Stop(leg.name, window, corner=True) for leg in self.legs for window in leg.corners()]
        ahead = [Stop(name, leg.end) for leg in self.legs[:-1]]
        gap, step, first = self.sides(self.legs[-1].end) - 1, self.sides(self.legs[0].end), []
        while gap > 0.5:
            first.append(ahead.pop(0 if len(first) % 2 == 0 else -1))
            gap -= step
        half = self.at(len(first) % 2 * step / self.sides(self.legs[-1].end) / 2 + 0.5)
        middle = Stop(name, replace(half, x=float(math.floor(half.x)), y=float(math.floor(half.y))))
        return [*first, middle, *ahead, *corners]


class Engine(Protocol):
    """Whatever can fill a hole in a picture."""

    def __call__(self, image: Tensor, mask: Tensor, prompt: str, seed: int) -> Tensor:
        """image (C, H, W) in [-1, 1], mask (1, H, W) in {0, 1}, 1 (white) = repaint -> (C, H, W)"""


@dataclass(frozen=True)
class Keyframe:
    """A picture that was painted on the way.

    stop   where, and for which move
    moved  (C, H, W) what of the earlier pictures is still seen there; 0 where nothing is
    mask   (1, H, W) 1 (white) where nothing is seen: repaint
    image  (C, H, W) painted; where the mask is 0, bit for bit what `moved` is
    """

    stop: Stop
    moved: Tensor
    mask: Tensor
    image: Tensor

    @property
    def new(self) -> float:
        """The share of the picture that is new."""
        return float(self.mask.mean())


def paint(world: World, path: Path, engine: Engine, prompt: str = "", seed: int = 0) -> Iterator[Keyframe]:
    """Paint all that the camera will see, one keyframe after another, and lay it into the world.

    What is seen already is never painted again: a camera that comes back finds what it left.
    """
    if path.round:
        world.add(path.legs[-1].end, world.look(path.legs[0].start)[0])
    for k, stop in enumerate(path.stops()):
        moved, seen = world.look(stop.window)
        mask = (~seen).float()
        image = moved
        if mask.any():
            image = overlay(moved, checked(engine(moved, mask, prompt, seed_of(seed, k)), moved), mask)
        world.add(stop.window, image, copy=not mask.any())
        yield Keyframe(stop, moved, mask, image)


def checked(painted: Tensor, like: Tensor) -> Tensor:
    """What an engine gave back, if it is a picture of the right kind."""
    if painted.shape != like.shape:
        raise ValueError(f"the engine was given {tuple(like.shape)} and gave back {tuple(painted.shape)}")
    if not painted.isfinite().all():
        raise UserError("the inpainting engine returned NaN or infinite values; try a smaller guidance scale, or another model")
    return painted.detach().to(like).clamp(-1, 1)


def seed_of(seed: int, k: int) -> int:
    """Another seed for each keyframe, which depends on (seed, k) alone."""
    return int(np.random.SeedSequence([abs(seed), k]).generate_state(1)[0] >> 1)


def shoot(world: World, path: Path, times: Sequence[float]) -> Iterator[Tensor]:
    """The frames of the film, each (C, H, W): at these shares of the way, from `loops.clock`. Paint first."""
    for time in times:
        image, seen = world.look(path.at(time))
        if not seen.all():
            raise ValueError(f"at {time:.3f} of the way the camera sees what nobody has painted; paint(world, path, ...) first")
        yield image
