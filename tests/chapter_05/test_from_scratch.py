"""train_unconditional.py and ddpm_package.py, and their memory side by side."""

import json
import re
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from diffusers import DDPMPipeline
from PIL import Image
from safetensors.torch import load_file

from common.data import load
from common.io.files import read_json, write_json
from common.io.pixels import to_float
from common.models.model_folder import load_model
from finetune_diffusers.data.augmentation import Augmented
from finetune_diffusers.training.unconditional_trainer import UnconditionalTrainer, new_scheduler, new_unet
from helpers.finetune_programs import MNIST, PACKAGE, RUNS, TRAIN, refused, table
from helpers.programs import load_program, run_main, run_program

QUICK = [
    "--n",
    20,
    "--size",
    16,
    "--channels",
    8,
    16,
    "--batch-size",
    8,
    "--sample-steps",
    2,
    "--sample-every",
    100,
    "--device",
    "cpu",
    "--precision",
    "no",
]
UNET = "model/unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Five steps in epochs of two: saved in the middle of one. Read only."""
    folder = tmp_path_factory.mktemp("unconditional") / "run"
    run_main(TRAIN, *QUICK, "--augment", "flip", "crop", "jitter", "--steps", 5, "--save-every", 3, "--out", folder)
    return folder


def losses(run: Path) -> list[str]:
    return [row["loss"] for row in table(run / "metrics.csv")]


def test_the_result_opens_in_diffusers_and_in_the_course(trained):
    pipe = DDPMPipeline.from_pretrained(trained / "model")
    assert pipe.unet.config.sample_size == 16 and pipe.scheduler.config.prediction_type == "v_prediction"
    ours = load_model(trained)
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([400])
    with torch.no_grad():
        torch.testing.assert_close(ours.net(x, t), pipe.unet.eval()(x, t).sample, atol=1e-5, rtol=0)
    assert (trained / "samples.png").exists() and len(set(losses(trained))) == 5
    assert sorted(path.name for path in (trained / "checkpoints").iterdir()) == ["step-00000003", "step-00000005"]
    raw = load_file(trained / "checkpoints" / "step-00000005" / "model.safetensors")
    # what is saved is the average
    assert any(not torch.equal(raw[name], value) for name, value in load_file(trained / UNET).items())


def counted(run: Path) -> dict[str, int]:
    """What a run says that it cost, where all weights are trained:
    four bytes for each number, and Adam keeps two for each weight.
    """
    cost = read_json(run / "results.json")["cost"]
    n = cost["trained"]
    assert n == cost["weights"] and cost["weight_bytes"] == cost["gradient_bytes"] == cost["average_bytes"] == 4 * n
    assert 8 * n <= cost["optimizer_bytes"] < 8 * n + 10_000 and cost["peak"] >= cost["before"] > 10_000_000
    return cost


def test_costs_side_by_side(trained, tmp_path, command_line):
    cost, run = counted(trained), Path(shutil.copytree(trained, tmp_path / "other"))
    assert cost["trained"] == sum(w.numel() for w in load_file(trained / UNET).values())
    code, out, _ = command_line(RUNS, trained, run)
    first, second = (row.split() for row in out.splitlines()[-2:])
    assert code == 0 and second == ["other", *first[1:]]
    n, kept = cost["trained"], 12 * cost["trained"] + cost["optimizer_bytes"]
    assert (
        first[1:6] == [f"{n:,}", "of", f"{n:,}", f"{kept / 1e3:.1f}", "kB"]
        and first[-3] == "5"
        and first[-1][-1] == "B"
    )
    assert "results.json, which a training" in refused(command_line(RUNS, tmp_path))
    (run / "results.json").write_text('{"cost": {"magic": 1}}')
    assert "does not say what the run cost" in refused(command_line(RUNS, run))


def test_a_resumed_run_is_bit_equal(trained, tmp_path, command_line):
    """It was killed after step 3, in the middle of its second epoch."""
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    shutil.rmtree(run / "checkpoints" / "step-00000005")
    (run / UNET).unlink()
    run_main(TRAIN, "--resume", run)
    assert losses(run) == losses(trained)
    a, b = load_file(run / UNET), load_file(trained / UNET)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert "all 5 steps are done" in command_line(TRAIN, "--resume", run)[1]


def test_a_damaged_checkpoint(trained, tmp_path, command_line):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    (run / "checkpoints" / "step-00000005" / "model.safetensors").write_bytes(b"half")
    assert "delete it and resume from step-00000003" in refused(command_line(TRAIN, "--resume", run, "--steps", 8))


def test_two_processes_train_as_one(tmp_path):
    """torchrun with 4 images in each of two processes, against 8 in one;
    `accelerate launch` on a CPU would have started one.
    """
    flags = [
        *QUICK[:4],
        "--channels",
        8,
        16,
        "--sample-steps",
        1,
        "--sample-every",
        100,
        "--device",
        "cpu",
        "--precision",
        "no",
        "--steps",
        5,
    ]
    run_main(TRAIN, *flags, "--batch-size", 8, "--out", tmp_path / "one")
    done = run_program(
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        2,
        "--",
        TRAIN,
        *flags,
        "--batch-size",
        4,
        "--out",
        tmp_path / "two",
    )
    assert done.returncode == 0 and done.stdout.count("2 process(es)") == 1, done.stdout + done.stderr
    one, two = ([float(loss) for loss in losses(tmp_path / name)] for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-4) and len(set(one)) == 5
    assert len(list((tmp_path / "two" / "checkpoints" / "step-00000005").glob("random_states_*"))) == 2
    a, b = (torch.cat([v.flatten() for v in load_file(tmp_path / name / UNET).values()]) for name in ("one", "two"))
    assert float((a - b).norm() / a.norm()) < 1e-3


def test_a_model_of_chapter_1_goes_on_unchanged(tmp_path, command_line):
    code, out, _ = command_line(
        TRAIN,
        "--model",
        MNIST,
        "--data",
        "digits",
        "--n",
        8,
        "--batch-size",
        4,
        "--steps",
        1,
        "--lr",
        1e-9,
        "--sample-steps",
        1,
        "--device",
        "cpu",
        "--precision",
        "no",
        "--out",
        tmp_path / "run",
    )
    assert code == 0 and "8 images of 1x28x28" in out
    before, after = (load_model(folder) for folder in (MNIST, tmp_path / "run"))
    assert before.prediction == after.prediction and torch.equal(before.schedule.alpha, after.schedule.alpha)
    for a, b in zip(before.net.parameters(), after.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_augmentation_depends_on_its_place_alone():
    images = load("creatures", 16, n=4)
    data = Augmented(images, ("flip", "crop", "jitter"), seed=1)
    first = [data[i]["image"] for i in range(4)]
    torch.manual_seed(5)
    torch.testing.assert_close(torch.stack([data[i]["image"] for i in (3, 2, 1, 0)]).flip(0), torch.stack(first))
    data.set_epoch(1)
    assert all(not torch.equal(data[i]["image"], first[i]) for i in range(4))
    plain = Augmented(images, (), seed=1)
    torch.testing.assert_close(plain[2]["image"], to_float(images.pixels[2]), atol=1e-5, rtol=0)
    flipped = Augmented(images, ("flip",), seed=1)
    kinds = set()
    for epoch in range(12):
        flipped.set_epoch(epoch)
        image = flipped[0]["image"]
        assert torch.equal(image, plain[0]["image"]) or torch.equal(image, plain[0]["image"].flip(-1))
        kinds.add(torch.equal(image, plain[0]["image"]))
    assert kinds == {True, False}


def test_each_image_has_its_own_luck():
    images = load("creatures", 16, n=1)
    same = Augmented(replace(images, pixels=images.pixels.repeat(6, 1, 1, 1)), ("flip", "crop", "jitter"), seed=1)
    assert len({tuple(same[i]["image"].flatten().tolist()) for i in range(6)}) == 6


def test_batches_go_on_anywhere_and_no_epoch_is_like_another(tmp_path):
    kind = load_program(TRAIN).Args
    args, images = kind(batch_size=4, steps=1, out=tmp_path), load("creatures", 16, n=12)
    accelerator = Accelerator(
        cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=0)
    )
    unet = new_unet((8, 8), images, seed=0)
    trainer = UnconditionalTrainer(unet, new_scheduler("v_prediction"), images, args, accelerator)
    nine = list(islice(trainer.batches(0), 9))  # three epochs
    assert [k for k, _ in nine] == list(range(9))
    for start in (2, 3, 7):
        assert all(
            torch.equal(a, b) for (_, a), (_, b) in zip(islice(trainer.batches(start), 2), nine[start:], strict=False)
        )
    plain = {tuple(image.flatten().tolist()) for _, batch in nine for image in batch}
    assert len(plain) > 30  # shifted and mirrored anew in each epoch, so hardly an image comes twice
    orders = [torch.cat([batch.mean((1, 2, 3)) for _, batch in nine[i : i + 3]]).argsort().tolist() for i in (0, 3, 6)]
    assert orders[0] != orders[1] != orders[2]


def test_grey_and_colour():
    images = load("creatures", 16, n=2)
    grey = images.in_channels(1)
    assert grey.pixels.shape == (2, 1, 16, 16) and images.in_channels(3) is images
    again = grey.in_channels(3)
    assert again.pixels.shape == (2, 3, 16, 16) and torch.equal(again.pixels[:, 0], again.pixels[:, 2])


def test_models_that_it_cannot_train(model, tmp_path, command_line):
    flags = [*QUICK, "--out", tmp_path / "out"]
    assert "finetune.py continues models that read text" in refused(command_line(TRAIN, "--model", model, *flags))
    folder = Path(shutil.copytree(MNIST, tmp_path / "labels"))
    config = read_json(folder / "unet" / "config.json")
    for change, says in (
        ({"num_class_embeds": 10}, "is class-conditional"),
        ({"out_channels": 2}, "2 output channels, as with a learned variance"),
    ):
        write_json(folder / "unet" / "config.json", config | change)
        assert says in refused(command_line(TRAIN, "--model", folder, *flags))
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--steps", 0], "--steps"),
        (["--ema", 1], "--ema"),
        (["--channels", 7], "multiples of 8"),
        (["--batch-size", 21], "do not fill a batch of 21"),
        (["--size", 18, "--channels", 8, 8, 8], "multiple of 4"),
        (["--data", "nothing"], "unknown data"),
        (["--resume", "nowhere"], "config.json"),
        (["--scheduler", "magic"], "unknown scheduler"),
        (["--lr", 100, "--steps", 30], "smaller --lr"),
        (["--lr", 1e9], "--lr must be at most 100"),
    ],
)
def test_what_train_unconditional_refuses(flags, says, tmp_path, command_line):
    assert says in refused(command_line(TRAIN, *QUICK, *flags, "--out", tmp_path / "out"))


SMALL = [
    "--n",
    100,
    "--size",
    16,
    "--dim",
    8,
    "--mults",
    1,
    2,
    "--samples",
    4,
    "--sample-steps",
    2,
    "--save-every",
    2,
    "--device",
    "cpu",
]


@pytest.fixture(scope="module")
def folder_of_png(tmp_path_factory) -> Path:
    from common.data.image_export import export

    folder = tmp_path_factory.mktemp("package") / "png"
    export(load("creatures", 16, n=100), folder)
    return folder


@pytest.mark.parametrize("objective", ["pred_v", "pred_noise", "pred_x0"])
def test_the_step_by_hand_is_the_packages(folder_of_png, tmp_path, objective, command_line):
    code, out, _ = command_line(
        PACKAGE,
        "--data",
        folder_of_png,
        *SMALL[2:],
        "--objective",
        objective,
        "--by-hand-only",
        "--out",
        tmp_path / "out",
    )
    ours, theirs = re.search(r"their mean is (\S+); .* says (\S+)", out).groups()
    assert code == 0 and float(ours) == pytest.approx(float(theirs), rel=1e-5) and float(ours) > 0.01
    assert not (tmp_path / "out").exists()


def test_the_package_trains_and_goes_on(tmp_path, command_line):
    code, out, _ = command_line(PACKAGE, *SMALL, "--steps", 3, "--out", tmp_path / "run")
    assert code == 0 and "100 images of creatures written" in out and "half precision off" in out
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "images",
        "config.json",
        "data.json",
        "model-1.pt",
        "sample-1.png",
        "model-2.pt",
        "results.json",
        "samples.png",
    }
    assert counted(tmp_path / "run")["device"] == "cpu" and "memory of the process, peak" in out
    code, out, _ = command_line(PACKAGE, "--resume", tmp_path / "run", "--steps", 4)
    assert code == 0 and "steps 3 to 4" in out
    state = torch.load(tmp_path / "run" / "model-2.pt", weights_only=True)
    assert state["step"] == 4 and "sample-2.png" in {path.name for path in (tmp_path / "run").iterdir()}
    (tmp_path / "run" / "model-2.pt").write_bytes(b"half")
    assert "delete it to go on from model-1.pt" in refused(
        command_line(PACKAGE, "--resume", tmp_path / "run", "--steps", 5)
    )


def test_the_guards_are_the_packages_own(folder_of_png, tmp_path):
    """What is refused with a sentence before is what the Trainer would have refused with an assertion."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Trainer, Unet

    process = GaussianDiffusion(Unet(8, dim_mults=(1, 2)), image_size=16)
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(folder_of_png.glob("*.png"))[:99]:
        shutil.copy(path, few)
    for folder, more in ((folder_of_png, {"train_batch_size": 15}), (folder_of_png, {"num_samples": 5}), (few, {})):
        with pytest.raises(AssertionError):
            Trainer(process, str(folder), results_folder=str(tmp_path / "out"), calculate_fid=False, **more)
    Trainer(process, str(folder_of_png), results_folder=str(tmp_path / "out"), calculate_fid=False)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--batch-size", 5, "--gradient-accumulation", 3], "5 x --gradient-accumulation 3 = 15"),
        (["--samples", 5], "square number"),
        (["--n", 99], "needs at least 100 images"),
        (["--size", 18, "--mults", 1, 2, 4], "multiple of 4"),
        (["--dim", 9], "--dim"),
        (["--ema", 1], "--ema"),
        (["--data", "nothing"], "unknown data"),
        (["--resume", "nowhere"], "config.json"),
        (["--sample-steps", 1001], "--sample-steps"),
    ],
)
def test_what_the_package_program_refuses(flags, says, tmp_path, command_line):
    assert says in refused(command_line(PACKAGE, *SMALL, *flags, "--out", tmp_path / "out"))


@pytest.mark.parametrize("suffix", [".webp", ".JPG"])
def test_files_that_the_package_does_not_see(tmp_path, command_line, suffix):
    """They are written out as PNGs; hidden files, which the package would take, are not."""
    source = tmp_path / "set"
    (source / ".ipynb_checkpoints").mkdir(parents=True)
    for i in range(100):
        Image.new("RGB", (20, 16), (i, i, i)).save(source / f"{i}{suffix}")
    Image.new("RGB", (16, 16)).save(source / ".ipynb_checkpoints" / "a.png")
    code, out, _ = command_line(PACKAGE, "--data", source, *SMALL[2:], "--by-hand-only", "--out", tmp_path / "out")
    assert code == 0 and f"100 images of {source} written to {tmp_path / 'out' / 'images'}" in out
    assert len(list((tmp_path / "out" / "images").glob("*.png"))) == 100
    (source / f"7{suffix}").unlink()
    err = refused(command_line(PACKAGE, "--data", source, *SMALL[2:], "--out", tmp_path / "other"))
    assert "needs at least 100 images" in err and f"{source} holds 99" in err and not (tmp_path / "other").exists()


def test_an_interrupted_run_without_a_milestone_begins_again(tmp_path):
    run_main(PACKAGE, *SMALL[:-4], "--save-every", 1000, "--device", "cpu", "--steps", 1, "--out", tmp_path / "run")
    (milestone,) = (tmp_path / "run").glob("model-*.pt")
    before = torch.load(milestone, weights_only=True)["model"]
    milestone.unlink()
    run_main(PACKAGE, "--resume", tmp_path / "run")
    after = torch.load(milestone, weights_only=True)["model"]
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_settings_are_kept(trained):
    saved = json.loads((trained / "config.json").read_text())
    assert saved["steps"] == 5 and saved["resume"] is None and saved["augment"] == ["flip", "crop", "jitter"]
