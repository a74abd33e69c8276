"""Chapter 4's autoencoder: training it, its latents in a file, and its latents on the fly."""

import csv
import dataclasses
import json
import math
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL as Theirs
from PIL import Image
from torch import nn

from common.data import Images, load
from common.errors import UserError
from common.models.model_folder import load_vae
from common.models.vae import AutoencoderKL, Gaussian, small_vae
from common.random import BatchRandom
from common.training import latents
from common.training.checkpoint import checkpoints, load_checkpoint
from common.training.latents import sample
from common.training.loop import LossTerms, TrainConfig, train
from helpers.programs import load_program, run_main
from latent_sd import concat_dataset, latent_benchmark, latent_dataset, vae_trainer

TRAIN, BENCHMARK = "04_latent_sd/train_vae.py", "04_latent_sd/benchmark_latents.py"
TINY = [
    "--data",
    "creatures",
    "--n",
    24,
    "--size",
    16,
    "--channels",
    8,
    16,
    "--batch-size",
    8,
    "--held-out",
    8,
    "--device",
    "cpu",
    "--precision",
    "no",
    "--sample-every",
    100,
]
ALL_TERMS = ["--perceptual", 0.1, "--adversarial", 0.5, "--adversarial-after", 0.3]
WEIGHTS, CONFIG = "model/vae/diffusion_pytorch_model.safetensors", "model/vae/config.json"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of six steps with every term of the loss. Read only."""
    folder = tmp_path_factory.mktemp("chapter_04") / "run"
    run_main(TRAIN, *TINY, *ALL_TERMS, "--steps", 6, "--save-every", 3, "--sample-every", 2, "--out", folder)
    return folder


@pytest.fixture(scope="module")
def images() -> Images:
    return load("creatures", 16, n=24)


@pytest.fixture
def vae() -> AutoencoderKL:
    """One that was never trained, with a scaling factor that is not one."""
    torch.manual_seed(0)
    return AutoencoderKL(dataclasses.replace(small_vae(16, 3, (8, 16)), scaling_factor=1.7)).eval()


def rows_of(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------------------------------------ training


def test_a_run_leaves_everything(run):
    for name in (
        "config.json",
        "metrics.csv",
        "samples/step-000002.png",
        "samples/traversal-000002.png",
        "curves.png",
        "traversal.png",
        WEIGHTS,
        CONFIG,
    ):
        assert (run / name).exists(), name
    saved = json.loads((run / "config.json").read_text())
    assert saved["data"] == ["creatures"] and saved["channels"] == [8, 16] and saved["adversarial"] == 0.5
    rows = rows_of(run / "quality.csv")
    assert [row["step"] for row in rows] == ["2", "4", "6"] and list(rows[0]) == vae_trainer.COLUMNS
    assert all(math.isfinite(float(row[name])) for row in rows for name in vae_trainer.COLUMNS)
    assert Image.open(run / "reconstructions.png").width > 8 * 16


def test_diffusers_opens_it_with_the_measured_scaling_factor(run, images):
    """The same reconstruction by their module and by ours;
    and scaled by it, the training set's latents have unit variance.
    """
    theirs, ours = Theirs.from_pretrained(run / "model" / "vae"), load_vae(run)
    assert theirs.config.scaling_factor == ours.cfg.scaling_factor != 1
    x = images.batch(torch.arange(24))["image"]
    with torch.no_grad():
        z = ours.encode(x)
        torch.testing.assert_close(ours.decode(z.mode()), theirs(x, sample_posterior=False).sample, atol=1e-5, rtol=0)
        # not the noise it was measured with
        other = z.sample(torch.randn(z.mean.shape, generator=torch.Generator().manual_seed(7)))
    assert float(ours.scale(other).std()) == pytest.approx(1, abs=0.02)


def test_a_resumed_run_is_the_same_run(run, tmp_path):
    """Thrown back to its checkpoint of step 3, where the discriminator has learned for one step,
    it ends with the same bytes.
    """
    again = tmp_path / "run"
    shutil.copytree(run, again)
    (again / "checkpoints" / "step-00000006.pt").unlink()
    shutil.rmtree(again / "model")
    run_main(TRAIN, "--resume", again, "--device", "cpu")
    for name in (WEIGHTS, CONFIG):
        assert (again / name).read_bytes() == (run / name).read_bytes(), name
    without_clock = [[{**row, "seconds": ""} for row in rows_of(folder / "quality.csv")] for folder in (run, again)]
    assert without_clock[0] == without_clock[1]
    critics = [load_checkpoint(checkpoints(folder)[-1])["loss"]["net"] for folder in (run, again)]
    before = load_checkpoint(checkpoints(run)[0])["loss"]["net"]
    assert all(torch.equal(critics[0][name], critics[1][name]) for name in before)
    assert not torch.equal(critics[0]["net.0.weight"], before["net.0.weight"])  # and it went on learning


def test_reconstructions_get_better(tmp_path):
    """In three dozen steps, on images of the test split."""
    run_main(TRAIN, *TINY, "--steps", 36, "--lr", 5e-3, "--sample-every", 4, "--flip", "--out", tmp_path / "run")
    found = [float(row["psnr"]) for row in rows_of(tmp_path / "run" / "quality.csv")]
    assert found[-1] > found[0] + 1  # decibels
    metrics = rows_of(tmp_path / "run" / "metrics.csv")
    assert all(row["loss_0"] and not row["loss_9"] for row in metrics)  # an autoencoder knows no noise levels


def test_the_adversarial_term_waits_for_its_share(images):
    """Before it, the discriminator is as it was; after it, it learns and the loss is another."""
    AcceleratorState._reset_state(reset_partial_state=True)
    args = load_program(TRAIN).Args(adversarial=1.0, adversarial_after=0.5)
    torch.manual_seed(0)
    net, batch = AutoencoderKL(small_vae(16, 3, (8, 16))), images.batch(torch.arange(8))
    loss = vae_trainer.VAELoss(args, images, Accelerator(cpu=True))
    before = [p.detach().clone() for p in loss.critic.net.parameters()]
    losses = []
    for loss.progress in (0.0, 0.49, 0.5):
        losses.append(loss(net, batch, BatchRandom(0, 0)).per_sample.detach())
        same = all(torch.equal(a, b) for a, b in zip(before, loss.critic.net.parameters(), strict=True))
        assert same == (loss.progress < 0.5)
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[1], losses[2])


def test_psnr():
    x = torch.zeros(2, 3, 4, 4)
    y = torch.stack([x[0] + 0.1, x[1] + 0.2])  # of a range of 2: 10 log10(4 / 0.01), and half the error is 6 dB more
    torch.testing.assert_close(vae_trainer.psnr(x, y), torch.tensor([26.0206, 20.0]), atol=1e-3, rtol=0)
    assert float(vae_trainer.psnr(x + 1, y + 1.5).min()) > 90  # what is brighter than white is shown as white


def test_several_sets_are_one():
    both = concat_dataset.load_all(("creatures", "dishes"), 16, Path("data"), n=3)
    assert both.name == "creatures+dishes" and both.pixels.shape == (6, 3, 16, 16) and len(both.captions) == 6
    assert torch.equal(both.pixels[3:], load("dishes", 16, n=3).pixels)
    mixed = concat_dataset.load_all(("creatures", "digits"), 16, Path("data"), n=3)  # grey beside colour is colour
    assert torch.equal(mixed.pixels[3:], load("digits", 16, n=3).pixels.expand(-1, 3, -1, -1))
    with pytest.raises(
        UserError,
        match="cannot be trained on together: creatures has 16x16 pixels, digits has 8x8 pixels; give one --size",
    ):
        concat_dataset.joined([load("creatures", 16, n=3), load("digits", n=3)])
    assert len(concat_dataset.some_of(("digits",), 8, Path("data"), "test", 10**6)) < 10**4  # no more than there are


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--kl", -1], "--kl must be 0 or more"),
        (["--perceptual", -0.1], "--perceptual"),
        (["--adversarial", "nan"], "--adversarial must"),
        (["--adversarial-after", 1], "--adversarial-after"),
        (["--steps", 4, "--minutes", 1], "not both"),
        (["--n", 0], "--n"),
        (["--held-out", 0], "--held-out"),
        (["--data", "nothing"], "unknown data"),
        (["--image-channels", 1, "--start", "nowhere"], "there is no folder nowhere"),
        (["--size", 18, "--channels", 8, 8, 16], "multiple of 4"),
        (["--channels", 12], "multiples of 8"),
        (["--data", "digits", "--size", 8, "--adversarial", 1], "at least 12 pixels"),
    ],
)
def test_what_training_refuses(flags, says, tmp_path, command_line):
    code, _, err = command_line(TRAIN, *TINY, *flags, "--out", tmp_path / "run")
    assert code == 2 and says in err and err.startswith("error: ") and "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_it_can_start_from_another_autoencoder(run, tmp_path, command_line):
    """With a rate of next to nothing, the weights stay those that it started from,
    at another size of the images, too.
    """
    flags = [a for a in TINY if a != "--size"]
    flags.remove(16)
    run_main(TRAIN, *flags, "--size", 32, "--lr", 1e-12, "--steps", 1, "--start", run, "--out", tmp_path / "next")
    old, new = (load_vae(folder).state_dict() for folder in (run, tmp_path / "next"))
    assert all(torch.allclose(old[key], new[key], atol=1e-6) for key in old)
    torch.manual_seed(0)
    assert not torch.allclose(
        old["encoder.conv_in.weight"], AutoencoderKL(load_vae(run).cfg).encoder.conv_in.weight, atol=1e-3
    )
    code, _, err = command_line(
        TRAIN, *TINY[:6], "--channels", 16, 16, "--steps", 1, "--start", run, "--out", tmp_path / "other"
    )
    assert code == 2 and "channels = (8, 16) against (16, 16)" in err


def test_the_decoder_alone(run, tmp_path, command_line):
    """Latents are bit for bit what they were, the scaling factor too, also after a resume;
    and the decoder has learned.
    """
    flags = [*TINY, "--decoder-only", "--out", tmp_path / "next"]
    run_main(TRAIN, *flags, "--start", run, "--steps", 2, "--save-every", 2)
    run_main(TRAIN, "--resume", tmp_path / "next", "--steps", 4, "--device", "cpu")
    old, new = load_vae(run), load_vae(tmp_path / "next")
    assert old.cfg.scaling_factor == new.cfg.scaling_factor != 1
    same = {key for key, weight in new.state_dict().items() if torch.equal(weight, old.state_dict()[key])}
    assert {key for key in new.state_dict() if key.startswith(("encoder.", "quant_conv."))} == same
    shutil.rmtree(tmp_path / "next" / "model")  # as after a kill -9 between the first checkpoint and the model
    run_main(TRAIN, "--resume", tmp_path / "next", "--steps", 5, "--device", "cpu")
    shutil.rmtree(tmp_path / "next" / "checkpoints")
    shutil.rmtree(tmp_path / "next" / "model")  # as after one before the first checkpoint: it begins where it began
    run_main(TRAIN, "--resume", tmp_path / "next", "--steps", 1, "--device", "cpu")
    assert all(torch.equal(load_vae(tmp_path / "next").state_dict()[key], old.state_dict()[key]) for key in same)
    code, _, err = command_line(TRAIN, *flags)
    assert code == 2 and "give its run or folder with --start" in err


def test_a_run_is_not_overwritten(run, command_line):
    code, _, err = command_line(TRAIN, *TINY, "--out", run)
    assert code == 2 and "already holds a run" in err


# --------------------------------------------------------------------------------------------------- latents in a file


def test_the_file_holds_what_the_encoder_says(vae, images, tmp_path, monkeypatch):
    """To half precision, scaled; and the second time it is read and nothing is encoded."""
    monkeypatch.setattr(latents, "encoder_batch", lambda pixels: 10)
    first = latent_dataset.cached_latents(vae, images, tmp_path)
    monkeypatch.setattr(latents, "encode", None)
    data = latent_dataset.cached_latents(vae, images, tmp_path)
    assert first.path == data.path and len(data) == 24 and isinstance(data.table, np.memmap)
    assert [path.name for path in tmp_path.iterdir()] == [data.path.name]
    indices = torch.tensor([23, 0, 11, 11])
    batch = data.batch(indices)
    with torch.no_grad():
        z = vae.encode(images.batch(indices)["image"])
    torch.testing.assert_close(batch["latent"], 1.7 * z.mean, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(batch["std"], 1.7 * (z.logvar / 2).exp(), rtol=2e-3, atol=1e-4)
    eps = BatchRandom(0, 5).randn(z.mean.shape)
    torch.testing.assert_close(sample(batch, BatchRandom(0, 5)), vae.scale(z.sample(eps)), rtol=2e-3, atol=2e-3)


def test_a_file_is_stale_after_any_change(vae, images, tmp_path):
    path = latent_dataset.cached_latents(vae, images, tmp_path).path
    pixels = images.pixels.clone()
    pixels[7, 0, 3, 3] ^= 1
    for other in (dataclasses.replace(images, pixels=pixels), images.first(23), images.resized(20)):
        assert latent_dataset.cached_latents(vae, other, tmp_path).path != path
    # a folder may have another name
    assert latent_dataset.cached_latents(vae, dataclasses.replace(images, name="moved"), tmp_path).path == path
    for net in (vae.encoder.conv_in, vae.quant_conv):
        with torch.no_grad():
            net.bias[0] += 1e-3
        assert latent_dataset.cached_latents(vae, images, tmp_path).path != path
        with torch.no_grad():
            net.bias[0] -= 1e-3
    again = AutoencoderKL(dataclasses.replace(vae.cfg, groups=4)).eval()
    again.load_state_dict(vae.state_dict())  # the same weights in another network
    assert latent_dataset.cached_latents(again, images, tmp_path).path != path


def test_another_scaling_factor_needs_no_other_file(vae, images, tmp_path):
    data = latent_dataset.cached_latents(vae, images, tmp_path)
    vae.cfg = dataclasses.replace(vae.cfg, scaling_factor=3.4)
    other = latent_dataset.cached_latents(vae, images, tmp_path)
    assert other.path == data.path
    torch.testing.assert_close(other.batch(torch.arange(3))["latent"], 2 * data.batch(torch.arange(3))["latent"])


def save_npy(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, array)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-10]),
        lambda path: path.write_bytes(path.read_bytes() + b"more"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:40]),
        lambda path: path.write_bytes(b"a foreign file" * 99),
        lambda path: save_npy(path, np.zeros((24, 2, 4, 4, 4), np.float16)),
        lambda path: save_npy(path, np.zeros((24, 2, 4, 8, 8), np.float32)),
        lambda path: save_npy(path, np.array([{"a": 1}], dtype=object)),
    ],
)
def test_a_damaged_or_foreign_file_is_refused(damage, vae, images, tmp_path):
    path = latent_dataset.cached_latents(vae, images, tmp_path).path
    damage(path)
    with pytest.raises(UserError, match="delete it, and it will be made again") as problem:
        latent_dataset.cached_latents(vae, images, tmp_path)
    assert path.name in str(problem.value) and "\n" not in str(problem.value)
    path.unlink()
    assert len(latent_dataset.cached_latents(vae, images, tmp_path)) == 24


@pytest.mark.parametrize("channel", [0, -1])  # of the mean, of the log variance
@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (float("nan"), "the autoencoder gives NaN or infinite latents for image 0"),
        (float("inf"), "the autoencoder gives NaN or infinite latents for image 0"),
        (1e6, "the latents of image 0 do not fit into half precision"),
    ],
)
def test_what_half_precision_cannot_hold_is_never_written(bad, sentence, channel, vae, images, tmp_path, monkeypatch):
    """1e6 is a fine number until it is stored in 16 bits."""
    with torch.no_grad():
        vae.quant_conv.bias[channel] = bad
    if channel:  # which the autoencoder keeps within bounds
        monkeypatch.setattr(
            latents, "encode", lambda *_: [Gaussian(torch.zeros(2, 4, 8, 8), torch.full((2, 4, 8, 8), bad))]
        )
    with pytest.raises(UserError, match=sentence):
        latent_dataset.cached_latents(vae, images, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_number_is_never_handed_out(vae, images, tmp_path):
    data = latent_dataset.cached_latents(vae, images, tmp_path)
    table = np.array(data.table)
    table[5, 0, 1, 2, 3] = np.nan
    save_npy(data.path, table)
    data = latent_dataset.cached_latents(vae, images, tmp_path)
    assert data.batch(torch.tensor([4, 6]))["latent"].isfinite().all()
    with pytest.raises(UserError, match="NaN or infinite latents"):
        data.batch(torch.tensor([4, 5, 6]))


def test_half_a_file_never_stands_under_its_name(vae, images, tmp_path, monkeypatch):
    def full(file, table):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(UserError, match="No space left"):
        latent_dataset.cached_latents(vae, images, tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------- on the fly


def test_on_the_fly_is_what_the_file_says(vae, images, tmp_path):
    data, live = latent_dataset.cached_latents(vae, images, tmp_path), latent_dataset.OnTheFly(vae, images)
    assert len(live) == len(data) == 24
    for name, value in live.batch(torch.tensor([3, 1, 20])).items():
        torch.testing.assert_close(value, data.batch(torch.tensor([3, 1, 20]))[name], rtol=2e-3, atol=1e-3)
        assert value.dtype == torch.float32 and not value.requires_grad


def test_workers_feed_the_training_loop(vae, images, tmp_path):
    """In its order, from the step on where a run is resumed, and with what is encoded here."""

    class Watched(latent_dataset.OnTheFly):
        def batch(self, indices):
            found = super().batch(indices)
            torch.testing.assert_close(found, here.batch(indices), rtol=1e-4, atol=1e-5)
            return found

    def loss(net, batch, draw):
        z = sample(batch, draw)
        return LossTerms((net(z) - z.flip(0)).square().flatten(1).mean(1), torch.zeros(len(z)))

    here, net = latent_dataset.OnTheFly(vae, images), nn.Conv2d(4, 4, 1)
    for first, steps in ((0, 3), (6, 5)):  # accumulating 2 batches a step: after 3 steps, 6 batches were used
        AcceleratorState._reset_state(reset_partial_state=True)
        data = Watched(vae, images, 2, latent_dataset.training_order(24, 8, seed=3, first=first), start="fork")
        cfg = TrainConfig(tmp_path, steps=steps, batch_size=8, gradient_accumulation=2, seed=3)
        *_, state = train(net, data, loss, cfg, Accelerator(cpu=True), resume=first > 0)
        data.close()
        assert state.step == steps


def test_workers_leave_signals_to_the_training(vae, images):
    """The terminal sends it to all processes.
    Were a worker ended by it, the training could not end its step and save.
    """
    order = latent_dataset.training_order(24, 8, seed=3)
    data, expected = (
        latent_dataset.OnTheFly(vae, images, 1, order, start="fork"),
        latent_dataset.training_order(24, 8, seed=3),
    )
    for _ in range(4):
        data.batch(next(expected))
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGINT)
    data.close()


def test_workers_know_what_comes_next_or_nothing_goes(vae, images):
    with pytest.raises(ValueError, match="order of the batches"):
        latent_dataset.OnTheFly(vae, images, workers=1)
    data = latent_dataset.OnTheFly(vae, images, 1, latent_dataset.training_order(24, 8, seed=3), start="fork")
    with pytest.raises(ValueError, match="not those of the order"):
        data.batch(torch.arange(8))
    data.close()


def test_each_of_several_processes_has_its_share_of_the_order():
    """Together the batches of one process with the batch twice as large,
    from the batch on that a resumed run begins with.
    """
    whole = latent_dataset.training_order(24, 8, seed=3, first=5)
    shares = [latent_dataset.training_order(24, 4, seed=3, first=5, rank=rank, world=2) for rank in range(2)]
    for _ in range(4):
        assert torch.equal(next(whole), torch.cat([next(share) for share in shares]))


def test_a_spawned_worker(vae, images):
    """As with a GPU: everything it is given has to be picklable, and its module to be found by name."""
    order = latent_dataset.training_order(24, 8, seed=3)
    data = latent_dataset.OnTheFly(vae, images, 1, latent_dataset.training_order(24, 8, seed=3), start="spawn")
    indices = next(order)
    torch.testing.assert_close(
        data.batch(indices), latent_dataset.OnTheFly(vae, images).batch(indices), rtol=1e-4, atol=1e-5
    )
    data.close()


def test_how_workers_begin(monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert (
        latent_dataset.start_method("cpu") == "fork"
        and latent_dataset.start_method("cuda") == latent_dataset.start_method("cuda:1") == "spawn"
    )
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)  # this process has used the GPU, for whatever
    assert latent_dataset.start_method("cpu") == "spawn"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr("sys.platform", "darwin")
    assert latent_dataset.start_method("cpu") == "spawn"


@pytest.mark.parametrize("size", [15, 18])
def test_images_that_do_not_fit(size, vae, images):
    vae = AutoencoderKL(small_vae(16, 3, (8, 8, 8))).eval()
    with pytest.raises(UserError, match="multiples of 4, but those of creatures are 3 x"):
        latent_dataset.OnTheFly(vae, images.resized(size))
    with pytest.raises(UserError, match="3 channels"):
        latent_dataset.OnTheFly(vae, Images("grey", images.pixels[:, :1]))


# --------------------------------------------------------------------------------------------------------- both, timed


def test_a_comparison_with_nothing(capsys):
    """A file that takes no memory of its own once made the report divide by zero."""
    latent_benchmark.report(
        {
            "from the file": latent_benchmark.EncodingCost(0.1, 0.1, 0),
            "on the fly": latent_benchmark.EncodingCost(1.0, 1.0, 10**6),
        },
        1.0,
        100,
        100,
    )
    assert capsys.readouterr().out.count(" -") >= 2


def test_the_comparison(tmp_path, command_line, monkeypatch):
    """All but the fresh process for every way, which costs seconds each to begin."""
    monkeypatch.setattr(latent_benchmark, "in_a_process", latent_benchmark.measure)
    flags = [
        "--data",
        "creatures",
        "--n",
        16,
        "--size",
        16,
        "--channels",
        8,
        16,
        "--batch-size",
        8,
        "--device",
        "cpu",
        "--epochs",
        2,
    ]
    code, said, err = command_line(
        BENCHMARK, *flags, "--workers", 0, 1, "--start", "fork", "--json", tmp_path / "found.json"
    )
    assert code == 0, err
    assert (
        "from the file" in said
        and "on the fly, no workers" in said
        and "on the fly, 1 worker (fork)" in said
        and "the file: " in said
    )
    found = json.loads((tmp_path / "found.json").read_text())
    # f = 2: more than the pixels
    assert found["bytes_of_pixels"] == 16 * 3 * 16 * 16 and found["bytes_of_file"] == 128 + 16 * 2 * 4 * 8 * 8 * 2
    assert all(cost["memory"] > 10**7 and cost["epoch"] > 0 for cost in found["ways"].values())


def test_memory_is_looked_at_once_at_least():
    """Though all was over before the first look."""
    memory = latent_benchmark.Memory()
    memory.over.set()
    with memory:
        pass
    assert memory.peak > 10**7


def test_the_verdict(capsys):
    costs = {
        "from the file": latent_benchmark.EncodingCost(0.2, 0.1, 10**8),
        "slow": latent_benchmark.EncodingCost(5, 3.0, 10**9),
        "fast": latent_benchmark.EncodingCost(9, 2.1, 2 * 10**8),
    }
    latent_benchmark.report(costs, 7.0, 10**6, 3 * 10**6)
    said = capsys.readouterr().out
    assert (
        "0.33 times the pixels" in said
        and "against the fastest other way (fast) it is paid for after 4 epochs" in said
    )
    latent_benchmark.report({**costs, "fast": latent_benchmark.EncodingCost(1, 0.05, 1)}, 7.0, 10**6, 10**6)
    assert "saves no time against fast" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--vae", "nowhere"], "there is no folder"),
        (["--data", "nothing"], "unknown data"),
        (["--size", 18, "--channels", 8, 8, 8], "multiple of 4"),
        (["--epochs", 1], "--epochs"),
        (["--workers", -1], "--workers"),
        (["--n", 0], "--n"),
        (["--data"], "--data needs at least one"),
    ],
)
def test_what_the_comparison_refuses(flags, says, tmp_path, command_line):
    code, _, err = command_line(
        BENCHMARK,
        "--data",
        "creatures",
        "--n",
        4,
        "--size",
        16,
        "--device",
        "cpu",
        "--json",
        tmp_path / "a.json",
        *flags,
    )
    assert code == 2 and says in err and err.startswith("error: ") and "Traceback" not in err
    assert not (tmp_path / "a.json").exists()


def test_a_trained_autoencoder_and_data_that_do_not_fit_it(run, command_line):
    code, _, err = command_line(BENCHMARK, "--vae", run, "--data", "digits", "--n", 4, "--size", 15, "--device", "cpu")
    assert code == 2 and "the autoencoder takes images with 3 channels" in err
