"""The log of a run: whether the loss stays finite, falls, and falls smoothly.

A network whose last layer starts at zero has a loss of about 1 at first (the variance of the target), and a healthy
training is below half of that within its first hundred steps.
"""

from collections.abc import Iterator

import numpy as np

from common.doctor.finding import Finding, fine, skipped, wrong
from common.doctor.runs.run_files import SHORT, Run

SUBJECT = "loss"
RISES = {
    True: 1.25,
    False: 1.5,
}  # highest over first loss, of a fresh and of a trained network: healthy ones stay below 1.05
SURE = 6  # standard errors of a mean over FIRST steps: in thousands of such means, none is so far off by chance
LEARNED = 0.9  # last over first loss: a fresh network that is above has learned nearly nothing
FIRST = 5  # steps whose mean is a loss: steps of one batch are too noisy
START = 2  # steps in which even far too high a rate has changed little, since it begins small


def findings(run: Run) -> Iterator[Finding]:
    """Loss not finite, learning rate too high or too low, gradient cut off."""
    if found := not_finite(run):
        yield found
        return
    loss, norm = run.column("loss"), run.column("grad_norm")
    if len(loss) < SHORT:
        yield skipped(SUBJECT, f"{len(loss)} steps are too few to judge; at least {SHORT} are needed")
        return
    if not norm[np.isfinite(norm)].any():
        yield wrong(
            "gradient",
            "its norm is 0 in every step, so no weight changes",
            "look for detach(), no_grad() or requires_grad=False between the weights and the loss",
        )
        return
    if run.settings.get("adversarial"):
        yield skipped(SUBJECT, "a loss with an adversarial term need not fall; see psnr in quality.csv")
        return
    yield trend(run, loss)


def not_finite(run: Run) -> Finding | None:
    """A loss that became NaN or infinite, and where."""
    loss = run.column("loss")
    at = int(np.flatnonzero(~np.isfinite(loss))[0]) if len(loss) and not np.isfinite(loss).all() else None
    message = run.optional("diverged.json").get("message") or run.optional("done.json").get("diverged")
    if at is None and not message:
        return None
    where = f"it is {loss[at]} in step {run.rows[at]['step']}" if at is not None else str(message).split(",")[0]
    return wrong("loss is finite", where, cure_of(loss, run))


def cure_of(loss: np.ndarray, run: Run) -> str:
    """A loss that was rising names the learning rate; one that was not names the images or the precision."""
    finite, lr = loss[np.isfinite(loss)], run.settings.get("lr")
    if len(finite) >= FIRST and finite[-FIRST:].mean() > RISES[run.fresh] * finite[:FIRST].mean():
        return f"the loss rose first: a smaller --lr{f' (it was {lr:g})' if isinstance(lr, float) else ''}"
    precision = run.settings.get("precision")
    half = "--precision no, or " if precision not in (None, "no") else ""
    before = ": the loss was low until then" if len(finite) else ""
    return f"{half}look for NaN in the images of this step{before}"


def trend(run: Run, loss: np.ndarray) -> Finding:
    """Compare the first steps, the highest stretch and the end."""
    means = np.convolve(loss, np.ones(FIRST) / FIRST, "valid")
    first, worst, last = means[0], means.max(), loss[-max(FIRST, len(loss) // 20) :].mean()
    # neighbouring steps differ by chance alone; the median of a normal variable's distance from 0 is 0.67 standard deviations
    error = np.median(np.abs(np.diff(loss))) / 0.6745 / 2**0.5 / FIRST**0.5
    lr = run.settings.get("lr")
    rate = f" (it was {lr:g})" if isinstance(lr, float) else ""
    start, doubt = first, SURE * error
    if run.fresh and loss[:START].mean() < first:  # a rate that is far too high spoils the first FIRST steps already
        start, doubt = loss[:START].mean(), doubt * (FIRST / START) ** 0.5
    if start > 0 and worst > max(RISES[run.fresh] * start, start + doubt):
        return wrong(
            SUBJECT, f"rises from {start:.3g} to {worst:.3g}: the learning rate is too high", f"a tenth of --lr{rate}"
        )
    if run.fresh and first > 0 and last > LEARNED * first:
        return wrong(
            SUBJECT,
            f"hardly falls, from {first:.3g} to {last:.3g} in {len(loss)} steps: the rate is too low, or the training too short",
            f"ten times --lr{rate}, or more --steps",
        )
    return fine(SUBJECT, f"{first:.3g} at first, {last:.3g} at the end of {len(loss)} steps")
