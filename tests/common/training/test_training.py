"""The training loop: its arithmetic, its order, and what it does when something goes wrong."""

import csv
import math
import os
import signal
import threading
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from common.data import load
from common.diffusion.losses import diffusion_loss
from common.diffusion.schedules import make_schedule
from common.errors import UserError
from common.models.unet import UNet, zero_init
from common.models.unet_config import UNetConfig
from common.random import BatchRandom, batch_indices, generator
from common.training.checkpoint import checkpoints, load_checkpoint
from common.training.logging import BINS, COLUMNS, Due, keep_rows_until, logged, loss_by_noise
from common.training.loop import LossTerms, TrainConfig, train
from common.training.optimization import learning_rate, power_ema
from helpers.programs import TINY, TRAIN, run_main


class Points:
    """32 "images" of one number each: enough for everything but pictures."""

    def __len__(self) -> int:
        return 32

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"image": (indices.float() / 16 - 1).view(-1, 1), "index": indices}


def little_net(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1))


def noisy_loss(net: nn.Module, batch: dict, draw: BatchRandom) -> LossTerms:
    """Depends on the images, on random numbers of both kinds, and (through dropout) on the global generator."""
    x = batch["image"]
    u = draw.stratified(len(x))
    return LossTerms((net(x + draw.randn(x.shape)) - x.sin() - u[:, None]).square().flatten(), u)


def plain_loss(net: nn.Module, batch: dict, draw: BatchRandom) -> LossTerms:
    x = batch["image"]
    return LossTerms((net(x) - x.sin()).square().flatten(), draw.stratified(len(x)))


def start(out: Path, net: nn.Module, loss=noisy_loss, resume: bool = False, **settings):
    """A training of 10 steps that saves every 3, unless told otherwise."""
    AcceleratorState._reset_state(reset_partial_state=True)
    budget = {} if "minutes" in settings else {"steps": 10}
    cfg = TrainConfig(out, **budget | {"batch_size": 8, "lr": 1e-2, "save_every": 3} | settings)
    return train(net, Points(), loss, cfg, Accelerator(cpu=True), resume)


def weights(net: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()]).clone()


# -------------------------------------------------------------------------------------------------- small arithmetic


def test_learning_rate_rises_then_falls():
    assert learning_rate(0.0, 2.0, 0.1) == 0
    assert learning_rate(0.05, 2.0, 0.1) == pytest.approx(1.0)
    assert learning_rate(0.1, 2.0, 0.1) == pytest.approx(2.0)  # the peak
    assert learning_rate(0.55, 2.0, 0.1) == pytest.approx(1.0)  # half of the half cosine
    assert learning_rate(1.0, 2.0, 0.1) == pytest.approx(0.0, abs=1e-12)
    assert learning_rate(1.3, 2.0, 0.1) == pytest.approx(0.0, abs=1e-12)  # the budget of minutes may be overrun
    rates = [learning_rate(k / 1000, 1.0, 0.05) for k in range(1001)]
    assert all(abs(a - b) < 0.021 for a, b in zip(rates, rates[1:], strict=False))
    assert rates.index(max(rates)) == 50 and learning_rate(0.0, 1.0, 0.0) == 1.0


@pytest.mark.parametrize("half_life", [0.05, 0.5])
def test_power_ema_forgets_half_in_its_half_life(half_life):
    """Weights half_life * k steps old count half: switch a constant signal on at step k and wait."""
    update, average = power_ema(half_life), [torch.zeros(2)]
    k = 2000
    for step in range(k, k + round(half_life * k)):
        update(average, [torch.ones(2)], torch.tensor(step))
    expected = 1 - math.exp(-math.log(2) * math.log(1 + half_life) / half_life)  # the memory grows while one waits
    assert float(average[0][0]) == pytest.approx(expected, abs=0.005)
    update(average, [average[0].clone()], torch.tensor(5000))
    assert float(average[0][0]) == pytest.approx(expected, abs=0.005)  # a constant stays


def test_ema_begins_with_the_weights_and_follows_after_each_step(tmp_path):
    net, expected = little_net(), None
    for state in start(tmp_path, net, ema=0.5):
        now = weights(net)  # after the optimizer step: an average taken before it would lag by one
        decay = 0.5 ** (1 / max(1.0, 0.5 * (state.step - 1)))
        expected = now if expected is None else decay * expected + (1 - decay) * now
        torch.testing.assert_close(weights(state.ema), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(weights(net), weights(state.ema), atol=1e-4)


@pytest.mark.parametrize(("n", "size"), [(32, 8), (33, 8), (7, 7), (100, 9)])
def test_every_image_at_most_once_an_epoch(n, size):
    per_epoch, seen = n // size, []
    for epoch in range(3):
        batches = [batch_indices(n, size, epoch * per_epoch + place, seed=4) for place in range(per_epoch)]
        indices = torch.cat(batches).tolist()
        assert len(set(indices)) == len(indices) == per_epoch * size and max(indices) < n
        if n % size == 0:
            assert sorted(indices) == list(range(n))
        seen.append(indices)
    if n > size:
        assert seen[0] != seen[1] != seen[2]
    again = torch.cat([batch_indices(n, size, place, seed=4) for place in range(per_epoch)]).tolist()
    assert (
        again == seen[0]
        and torch.cat([batch_indices(n, size, place, seed=5) for place in range(per_epoch)]).tolist() != seen[0]
    )


def test_fewer_images_than_a_batch():
    batch = batch_indices(3, 8, 0, seed=0)
    assert batch.shape == (8,) and set(batch.tolist()) <= {0, 1, 2}
    assert batch.tolist() == batch_indices(3, 8, 0, seed=0).tolist() != batch_indices(3, 8, 1, seed=0).tolist()


def test_processes_share_what_one_would_have_drawn():
    for draw in (lambda d, n: d.randn((n, 2, 3)), lambda d, n: d.rand(n), lambda d, n: d.stratified(n)):
        whole = draw(BatchRandom(3, 17), 8)
        parts = [draw(BatchRandom(3, 17, rank, world=4), 2) for rank in range(4)]
        assert torch.equal(torch.cat(parts), whole)
        assert not torch.equal(draw(BatchRandom(3, 18), 8), whole) and not torch.equal(
            draw(BatchRandom(4, 17), 8), whole
        )


def test_stratified_draws_meet_every_noise_level():
    for step in range(50):
        u = BatchRandom(0, step).stratified(16)
        assert (u * 16).long().tolist() == list(range(16)) and u.min() >= 0 and u.max() < 1
    many = torch.cat([BatchRandom(0, step).stratified(16) for step in range(500)])
    assert float(many.mean()) == pytest.approx(0.5, abs=0.002) and float(many.var()) == pytest.approx(1 / 12, rel=0.02)


def test_places_have_their_own_randomness():
    numbers = [
        int(torch.randint(2**40, (1,), generator=generator(*place)))
        for place in ((0, 0), (0, 1), (1, 0), (2, 0), (0, 2), (1, 1))
    ]
    assert len(set(numbers)) == len(numbers)


# ------------------------------------------------------------------------------------------------------------ the loop


def test_states_report_what_happened(tmp_path):
    states = []
    for state in start(tmp_path, little_net(), gradient_accumulation=2, seed=3):
        states.append(state)
        assert float(state.terms.per_sample.mean()) == pytest.approx(state.loss, rel=1e-6)
        assert len(state.terms.per_sample) == len(state.terms.u) == state.images == 16
        assert state.lr == pytest.approx(learning_rate((state.step - 0.5) / 10, 1e-2, 0.05))
        assert state.progress == state.step / 10
    assert [state.step for state in states] == list(range(1, 11))
    assert [state.step for state in states if state.saved] == [3, 6, 9, 10]
    assert [state.done for state in states] == [False] * 9 + [True]
    assert all(a.seconds < b.seconds for a, b in zip(states, states[1:], strict=False))
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000009.pt", "step-00000010.pt"]


def test_the_loss_of_digits_falls(tmp_path):
    data, schedule = load("digits"), make_schedule("cosine")
    torch.manual_seed(0)
    net = zero_init(UNet(UNetConfig(size=8, channels=(8, 16), attention=(False, True), groups=4, scale_shift=True)))

    def loss(net, batch, draw):
        u = draw.stratified(len(batch["image"]))
        return LossTerms(diffusion_loss(net, schedule, "v", batch["image"], u, draw.randn(batch["image"].shape)), u)

    AcceleratorState._reset_state(reset_partial_state=True)
    cfg = TrainConfig(tmp_path, steps=60, batch_size=32, lr=5e-3)
    losses = [state.loss for state in train(net, data, loss, cfg, Accelerator(cpu=True))]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_the_gradient_is_clipped(tmp_path):
    """Ten times the loss, the same step: only the direction counts once the norm is above the limit."""
    nets = little_net(), little_net()
    for net, factor in zip(nets, (10.0, 100.0), strict=True):
        states = start(
            tmp_path / str(factor),
            net,
            lambda *args, factor=factor: plain_loss(*args)._replace(per_sample=factor * plain_loss(*args).per_sample),
            clip=1e-3,
        )
        norms = [state.grad_norm for state in states]
    assert norms[0] > 1  # the norm reported is that before clipping
    torch.testing.assert_close(weights(nets[0]), weights(nets[1]), rtol=1e-3, atol=1e-4)


def test_accumulation_is_one_larger_batch(tmp_path):
    """2 x 4 images against 1 x 8: the images are the same ones (32 of them, which 8 divides). The random numbers are
    drawn batch by batch and so are not the same, wherefore this loss uses none."""
    one, two = little_net(), little_net()
    losses = [
        [state.loss for state in start(tmp_path / str(n), net, plain_loss, batch_size=8 // n, gradient_accumulation=n)]
        for n, net in ((1, one), (2, two))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(weights(one), weights(two), rtol=1e-4, atol=1e-6)


def test_slow_weights_learn_at_a_tenth_of_the_rate(tmp_path):
    """AdamW's first step moves every weight by its learning rate, whatever its gradient."""
    net = little_net()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    state = next(start(tmp_path, net, plain_loss, lr_scales={"3.": 0.1}))
    for name, p in net.named_parameters():
        expected = state.lr * (0.1 if name.startswith("3.") else 1.0)
        assert float((p.detach() - before[name]).abs().max()) == pytest.approx(expected, rel=0.02), name


def test_slow_weights_stay_slow_when_the_run_continues(tmp_path):
    whole, fresh = little_net(), little_net()
    list(start(tmp_path / "whole", whole, lr_scales={"3.": 0.1}))
    for state in start(tmp_path / "part", little_net(), lr_scales={"3.": 0.1}):
        if state.step == 4:
            break
    list(start(tmp_path / "part", fresh, resume=True, lr_scales={"3.": 0.1}))
    assert torch.equal(weights(fresh), weights(whole))


def test_slow_weights_have_to_be_there(tmp_path):
    with pytest.raises(ValueError, match="begins with 'reader'"):
        next(start(tmp_path, little_net(), lr_scales={"reader": 0.1}))


def test_a_budget_in_minutes(tmp_path, monkeypatch):
    """A clock on which each step takes two seconds, so that it does not matter how busy the machine is."""
    clock, stopwatch = count(100.0, 2.0), count(0.0, 1.0)
    monkeypatch.setattr("common.training.budget.time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr("common.training.loop.time", SimpleNamespace(perf_counter=lambda: next(stopwatch)))
    states = list(start(tmp_path, little_net(), minutes=2.0, save_every=20))
    assert [state.seconds for state in states] == [2.0 * k for k in range(1, 61)]
    assert [state.done for state in states] == [False] * 59 + [True] and states[-1].progress == 1
    # looked at twice a step: what the caller does in between is not in it
    assert {state.took for state in states} == {1.0}
    rates = [state.lr for state in states]  # the rate follows the clock: 5 % of warm-up are three steps
    assert rates.index(max(rates)) == 3 and rates[-1] < 0.01 * max(rates)

    clock = count(5000.0, 2.0)  # another day: the time already used counts
    again = list(start(tmp_path, little_net(), minutes=3.0, resume=True))
    assert [state.seconds for state in again] == [2.0 * k for k in range(60, 91)]


@pytest.mark.parametrize("budget", [{"steps": None}, {"steps": 5, "minutes": 1.0}])
def test_no_budget_or_two(tmp_path, budget):
    with pytest.raises(UserError, match="either in steps or in minutes"):
        next(start(tmp_path, little_net(), **budget))


# ----------------------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("stop_after", [1, 3, 4, 9, 10])
def test_a_run_stopped_anywhere_continues_bit_by_bit(tmp_path, stop_after):
    """With dropout, so that the global generator matters too. What test_resume.py does with real processes."""
    whole, part = little_net(0.3), little_net(0.3)
    *_, end = start(tmp_path / "whole", whole)
    for state in start(tmp_path / "part", part):
        if state.step == stop_after:
            break
    fresh = little_net(0.3)
    torch.rand(7)  # whatever else was drawn in between
    *_, end_again = start(tmp_path / "part", fresh, resume=True)
    assert end_again.step == end.step == 10
    assert torch.equal(weights(end_again.ema), weights(end.ema))
    if stop_after < 10:
        assert torch.equal(weights(fresh), weights(whole)) and end_again.loss == end.loss
    one, other = (load_checkpoint(checkpoints(tmp_path / name)[-1]) for name in ("whole", "part"))
    for key in ("net", "ema"):
        assert all(torch.equal(one[key][name], other[key][name]) for name in one[key])


class LearningLoss:
    """A loss with a network of its own, which takes a step whenever the loss is asked for: as a discriminator does."""

    def __init__(self):
        torch.manual_seed(1)
        self.rival = nn.Linear(1, 1)
        self.optimizer = torch.optim.AdamW(self.rival.parameters(), 1e-2)

    def __call__(self, net: nn.Module, batch: dict, draw: BatchRandom) -> LossTerms:
        errors = noisy_loss(net, batch, draw)
        (self.rival(batch["image"]) - errors.per_sample.detach()[:, None]).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return errors._replace(
            per_sample=errors.per_sample * (2 + self.rival(batch["image"]).detach().flatten().tanh())
        )

    def state_dict(self) -> dict:
        return {"rival": self.rival.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.rival.load_state_dict(state["rival"])
        self.optimizer.load_state_dict(state["optimizer"])


@pytest.mark.parametrize("stop_after", [1, 4, 6])
def test_a_loss_that_learns_is_saved_and_resumed_too(tmp_path, stop_after):
    """Stopped before, after and at a checkpoint. With a rival that began anew the two runs would part."""
    whole, whole_loss, part_loss = little_net(), LearningLoss(), LearningLoss()
    *_, end = start(tmp_path / "whole", whole, whole_loss)
    for state in start(tmp_path / "part", little_net(), LearningLoss()):
        if state.step == stop_after:
            break
    fresh = little_net()
    *_, end_again = start(tmp_path / "part", fresh, part_loss, resume=True)
    assert end_again.loss == end.loss and torch.equal(weights(fresh), weights(whole))
    assert torch.equal(weights(part_loss.rival), weights(whole_loss.rival))
    assert not torch.equal(weights(whole_loss.rival), weights(LearningLoss().rival))


def test_a_longer_budget_continues_a_finished_run(tmp_path):
    list(start(tmp_path, little_net()))
    states = list(start(tmp_path, little_net(), resume=True, steps=14))
    assert [state.step for state in states if not math.isnan(state.lr) and state.step > 10] == [11, 12, 13, 14]


def test_resuming_before_the_first_checkpoint_begins_anew(tmp_path):
    *_, end = start(tmp_path / "whole", little_net())
    *_, again = start(tmp_path / "empty", little_net(), resume=True)
    assert torch.equal(weights(again.ema), weights(end.ema))


def test_ctrl_c_ends_the_run_after_the_step(tmp_path):
    before, steps = signal.getsignal(signal.SIGINT), []
    for state in start(tmp_path, little_net()):
        steps.append(state)
        if state.step == 4:
            os.kill(os.getpid(), signal.SIGINT)
    assert [state.step for state in steps] == [1, 2, 3, 4, 5] and steps[-1].done and steps[-1].saved
    assert checkpoints(tmp_path)[-1].name == "step-00000005.pt"
    assert signal.getsignal(signal.SIGINT) is before


KINDS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_signal_that_asks_for_the_end_saves_first(kind, tmp_path):
    """Ctrl-C; `kill` or a job's time limit; a closed terminal.
    The handlers are put back, and the resumed run is the run left alone.
    """
    before = {other: signal.getsignal(other) for other in KINDS}
    for state in start(tmp_path / "run", little_net()):
        if state.step == 4:
            os.kill(os.getpid(), kind)
    assert (
        state.step == 5 and state.done and state.saved and checkpoints(tmp_path / "run")[-1].name == "step-00000005.pt"
    )
    assert {other: signal.getsignal(other) for other in KINDS} == before
    *_, end = start(tmp_path / "run", little_net(), resume=True)
    *_, whole = start(tmp_path / "whole", little_net())
    assert torch.equal(weights(end.ema), weights(whole.ema))


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_nohup_keeps_the_run_going(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        for state in start(tmp_path, little_net()):
            if state.step == 4:
                os.kill(os.getpid(), signal.SIGHUP)
        assert state.progress == 1 and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_after_one_signal_any_second_one_ends_at_once(tmp_path):
    """SIGTERM after Ctrl-C is the system's own again."""
    states = start(tmp_path, little_net())
    next(states)
    before = {kind: signal.getsignal(kind) for kind in KINDS}
    os.kill(os.getpid(), signal.SIGTERM)
    next(states)
    after = {kind: signal.getsignal(kind) for kind in KINDS}
    states.close()
    assert (
        all(after[kind] != before[kind] for kind in (signal.SIGINT, signal.SIGTERM))
        and after[signal.SIGTERM] == signal.SIG_DFL
    )


def test_a_training_in_a_thread_leaves_signals_alone(tmp_path):
    found = []
    thread = threading.Thread(target=lambda: found.extend(start(tmp_path, little_net())))
    thread.start()
    thread.join()
    assert found[-1].progress == 1


@pytest.mark.parametrize(
    ("progress", "step", "due"), [(0.3, 3, True), (0.35, 7, False), (0.4, 8, True), (0.05, 1, False), (1.0, 20, True)]
)
def test_a_resumed_run_does_what_was_due_after_its_checkpoint(progress, step, due):
    """It may have been killed between the checkpoint and the picture."""
    assert Due(None)(SimpleNamespace(progress=progress, step=step)) is due


def test_a_second_ctrl_c_ends_it_at_once(tmp_path):
    # a shell that starts tests in the background has it ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        states = start(tmp_path, little_net())
        next(states)
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):  # the signal is handled between two instructions
                pass
        states.close()
    finally:
        signal.signal(signal.SIGINT, before)


# ---------------------------------------------------------------------------------------------------- NaN and infinity


def broken_at(step: int, how: str):
    """A loss that goes wrong at one step: in its value, or only in its gradient."""
    calls = []

    def loss(net, batch, draw):
        errors = noisy_loss(net, batch, draw)
        calls.append(1)
        if len(calls) != step:
            return errors
        if how == "gradient":  # d sqrt(x) / dx at zero
            return errors._replace(
                per_sample=errors.per_sample + (errors.per_sample - errors.per_sample.detach()).clamp(min=0).sqrt()
            )
        return errors._replace(per_sample=errors.per_sample * float(how))

    return loss


@pytest.mark.parametrize("how", ["nan", "inf", "gradient"])
def test_a_loss_that_is_no_number_stops_the_run(tmp_path, how):
    net, seen = little_net(), {}
    with pytest.raises(
        UserError,
        match=r"step 8: the loss is .*last good checkpoint is .*step-00000006.pt.*smaller --lr \(it was 0.01\)",
    ) as problem:
        for state in start(tmp_path, net, broken_at(8, how)):
            seen[state.step] = weights(net)
    assert "\n" not in str(problem.value)
    assert torch.equal(weights(net), seen[7])  # nothing of it reached the weights
    kept = load_checkpoint(checkpoints(tmp_path)[-1])
    assert kept["step"] == 6 and all(torch.isfinite(value).all() for value in kept["net"].values())


def test_a_loss_that_is_no_number_from_the_beginning(tmp_path):
    with pytest.raises(UserError, match="step 1: .*no checkpoint had been written yet"):
        next(start(tmp_path, little_net(), broken_at(1, "nan")))


# ----------------------------------------------------------------------------------------------------------- the log


def rows_of(run: Path) -> list[dict]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_for_every_step(trained_run):
    rows = rows_of(trained_run)
    assert [int(row["step"]) for row in rows] == list(range(1, 13)) and list(rows[0]) == COLUMNS
    for row in rows:
        by_noise = [float(row[f"loss_{i}"]) for i in range(BINS) if row[f"loss_{i}"]]
        assert len(by_noise) >= 5  # 8 stratified images fall into at least that many of the ten bins
        assert min(by_noise) <= float(row["loss"]) <= max(by_noise) and math.isfinite(float(row["grad_norm"]))
    assert list(trained_run.glob("events.out.tfevents.*"))


def test_the_loss_by_noise_level_adds_up(tmp_path):
    """Weighted with the number of images in each tenth it is the loss."""
    for state in logged(start(tmp_path, little_net()), tmp_path, 10, quiet=True):
        number = torch.bincount((state.terms.u * BINS).long(), minlength=BINS)
        total = sum(float(cell) * int(n) for cell, n in zip(loss_by_noise(state), number, strict=True) if cell)
        assert total / int(number.sum()) == pytest.approx(state.loss, rel=1e-4)


def test_rows_after_the_checkpoint_are_cut_off(tmp_path):
    """kill -9 may leave steps that will be done again, and half a row."""
    path = tmp_path / "metrics.csv"
    row = ["0.5"] * (len(COLUMNS) - 1)
    path.write_text("\n".join([",".join(COLUMNS), *(",".join([str(k), *row]) for k in range(1, 9)), "9,0.4"]))
    keep_rows_until(path, 6)
    assert [int(row["step"]) for row in rows_of(tmp_path)] == [1, 2, 3, 4, 5, 6]
    keep_rows_until(path, 0)
    assert rows_of(tmp_path) == [] and path.read_text().strip() == ",".join(COLUMNS)
    keep_rows_until(tmp_path / "missing.csv", 3)
    assert not (tmp_path / "missing.csv").exists()


def test_the_same_seed_trains_the_same_model(trained_run, tmp_path):
    run_main(TRAIN, *TINY, "--steps", 12, "--save-every", 5, "--out", tmp_path / "again")
    name = "model/unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (trained_run / name).read_bytes()
    run_main(TRAIN, *TINY, "--steps", 12, "--save-every", 5, "--seed", 1, "--out", tmp_path / "other")
    assert (tmp_path / "other" / name).read_bytes() != (trained_run / name).read_bytes()
