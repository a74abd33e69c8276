"""When the camera is where: eased ends, and ways to make the last frame meet the first.

  once       from the start to the end
  pingpong   there and back
  seamless   a way that comes back (a ring; "right,left") is simply repeated; any other is cut, and its end dissolves into its
             beginning while the camera moves on
  round      for a camera that moves sideways: the world is round, and it arrives where it began (Path.around)

A loop of n frames shows its first frame once: after the last one comes the first, one step further.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from common.errors import UserError

LOOPS = ("once", "pingpong", "seamless", "round")


def linear(t: float) -> float:
    return t


def ends(t: float, part: float = 0.2) -> float:
    """Constant speed, but for the first and the last fifth of the time, in which it grows from 0 and falls to 0 again."""
    if t > 0.5:
        return 1 - ends(1 - t, part)
    speed = 1 / (1 - part)
    return speed * t * t / (2 * part) if t < part else speed * (t - part / 2)


def smooth(t: float) -> float:
    """Faster and faster up to the middle, then slower and slower: 3t^2 - 2t^3."""
    return t * t * (3 - 2 * t)


EASES: dict[str, Callable[[float], float]] = {"linear": linear, "ends": ends, "smooth": smooth}


def clock(frames: int, loop: str = "once", ease: str = "linear", returns: bool = False, dissolve: int | None = None) -> list[float]:
    """For each frame to shoot, the share of the way that the camera has gone; `close` makes a loop of them.

    frames    of the finished film
    returns   whether the way ends where it begins (Path.returns)
    dissolve  frames of the dissolve, a quarter of all by default; so many more are to be shot
    """
    check(frames, loop, ease)
    if loop == "once":
        return [EASES[ease](k / (frames - 1)) for k in range(frames)]
    if loop == "pingpong":
        return [EASES[ease](1 - abs(1 - 2 * k / frames)) for k in range(frames)]
    if loop == "round" and not returns:
        raise ValueError("for loop round, plan the path with .around()")
    if returns:
        return [EASES[ease](k / frames) for k in range(frames)]
    more = overlap(frames, dissolve)
    return [EASES[ease](k / (frames + more - 1)) for k in range(frames + more)]


def close(shot: Iterable[Tensor], frames: int) -> Iterator[Tensor]:
    """The finished film of so many frames, from those that `clock` asked for: if there are more, the first and the last ones
    are dissolved into each other.

    With m frames more, the film is m..n-1 as shot, and then the m frames in which n + k fades out and k fades in. After the
    last of them, which is nearly frame m - 1, comes frame m: the loop is closed, and nowhere does the camera stand still.
    """
    shot = list(shot)
    more = len(shot) - frames
    if not 0 <= more <= frames:
        raise ValueError(f"{len(shot)} frames cannot make a film of {frames}")
    yield from shot[more:frames]
    for k in range(more):
        yield torch.lerp(shot[frames + k], shot[k], (k + 1) / (more + 1))


def overlap(frames: int, dissolve: int | None) -> int:
    """How many frames are dissolved."""
    more = max(1, frames // 4) if dissolve is None else dissolve
    if not 1 <= more <= frames // 2:
        raise UserError(f"a film of {frames} frames can dissolve 1 to {frames // 2} of them, not {more}")
    return more


def steps(frames: Sequence[Tensor], looped: bool = True) -> list[float]:
    """The change from each frame to the next, root mean square; if looped, from the last one to the first too."""
    following = [*frames[1:], frames[0]] if looped else frames[1:]
    return [float((b - a).square().mean().sqrt()) for a, b in zip(frames, following, strict=False)]


def check(frames: int, loop: str, ease: str) -> None:
    if loop not in LOOPS:
        raise UserError(f"unknown loop '{loop}'; choose one of {', '.join(LOOPS)}")
    if ease not in EASES:
        raise UserError(f"unknown ease '{ease}'; choose one of {', '.join(EASES)}")
    if frames < 2:
        raise UserError(f"--frames must be at least 2, not {frames}")
