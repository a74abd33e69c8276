"""Timing of the frames: easing, and four kinds of loops.

  once       from the start to the end
  pingpong   to the end and back
  seamless   a path that returns to its start (a ring; "right,left") is repeated; in any other the end of the film
             dissolves into its beginning while the camera moves on
  round      for a camera that moves straight to one side: the plane is periodic, and the camera arrives at its start
             (CameraPath.around)

A loop of n frames shows its first frame once; the first frame is one step further than the last.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from common.errors import UserError

LOOPS = ("once", "pingpong", "seamless", "round")


def linear(t: float) -> float:
    return t


def ends(t: float, part: float = 0.2) -> float:
    """Constant speed, except in the first and the last fifth of the time, where it rises from 0 and falls to 0."""
    if t > 0.5:
        return 1 - ends(1 - t, part)
    speed = 1 / (1 - part)
    return speed * t * t / (2 * part) if t < part else speed * (t - part / 2)


def smooth(t: float) -> float:
    """Accelerates until the middle, then decelerates: 3t^2 - 2t^3."""
    return t * t * (3 - 2 * t)


EASES: dict[str, Callable[[float], float]] = {"linear": linear, "ends": ends, "smooth": smooth}


def frame_times(frames: int, loop: str = "once", ease: str = "linear", returns: bool = False) -> list[float]:
    """The times, from 0 to 1, at which to render the path; `close_loop` makes the film from these frames.

    frames    frames of the finished film
    returns   whether the path ends where it begins (CameraPath.returns)
    """
    check_timing(frames, loop, ease)
    if loop == "once":
        return [EASES[ease](k / (frames - 1)) for k in range(frames)]
    if loop == "pingpong":
        return [EASES[ease](1 - abs(1 - 2 * k / frames)) for k in range(frames)]
    if loop == "round" and not returns:
        raise ValueError("for loop round, plan the path with .around()")
    if returns:
        return [EASES[ease](k / frames) for k in range(frames)]
    more = max(1, frames // 4)  # frames of the dissolve; as many additional frames are rendered
    return [EASES[ease](k / (frames + more - 1)) for k in range(frames + more)]


def close_loop(rendered: Iterable[Tensor], frames: int) -> Iterator[Tensor]:
    """The finished film of `frames` frames, from the frames at `frame_times`. If there are more, the first and the
    last ones dissolve into each other.

    With m additional frames, the film is frames m..n-1 as rendered, then m frames in which n + k fades out and k fades
    in. The last of them is nearly frame m - 1, and frame m follows it: the loop is closed, and the camera never stops.
    """
    rendered = list(rendered)
    more = len(rendered) - frames
    if not 0 <= more <= frames:
        raise ValueError(f"{len(rendered)} frames cannot make a film of {frames}")
    yield from rendered[more:frames]
    for k in range(more):
        yield torch.lerp(rendered[frames + k], rendered[k], (k + 1) / (more + 1))


def frame_changes(frames: Sequence[Tensor], looped: bool = True) -> list[float]:
    """Root mean square change from each frame to the next; if looped, also from the last to the first."""
    following = [*frames[1:], frames[0]] if looped else frames[1:]
    return [float((b - a).square().mean().sqrt()) for a, b in zip(frames, following, strict=False)]


def check_timing(frames: int, loop: str, ease: str) -> None:
    """Refuse unknown names and fewer than two frames."""
    if loop not in LOOPS:
        raise UserError(f"unknown loop '{loop}'; choose one of {', '.join(LOOPS)}")
    if ease not in EASES:
        raise UserError(f"unknown ease '{ease}'; choose one of {', '.join(EASES)}")
    if frames < 2:
        raise UserError(f"--frames must be at least 2, not {frames}")
