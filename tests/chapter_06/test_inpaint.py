"""The trainings that fill holes: the inpainting U-Net and the ControlNet, their scenes and masks."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoPipelineForInpainting
from safetensors.torch import load_file

from common.data.dishes.dataset import dish
from common.data.dishes.draw import draw
from common.random import BatchRandom
from helpers.chapter_06 import QUICK, TRAIN_CONTROLNET, TRAIN_DISH, TRAIN_INPAINT, UNET, photograph, right_hole
from helpers.programs import run_main
from inpaint_gif.animation.camera import CameraPath, Move
from inpaint_gif.animation.canvas import FilmCanvas
from inpaint_gif.clip.name_encoder import open_model
from inpaint_gif.inpainting import backends
from inpaint_gif.training import hole_masks, holes, inpaint, scenes
from inpaint_gif.training.flags import HoleFlags


@pytest.mark.parametrize("which", ["dish", "hole", "control"])
def test_a_resumed_run_is_the_same_run(which, request, tmp_path):
    """Thrown back to its checkpoint of step 2, it ends with the same bytes;
    what it began with may be gone, if it does not work beside it.
    """
    run, again = request.getfixturevalue(f"{which}_run"), tmp_path / "run"
    shutil.copytree(run, again)
    (again / "checkpoints" / "step-00000004.pt").unlink()
    settings, gone = (
        json.loads((again / "config.json").read_text()),
        {"dish": ("model", "clip"), "hole": ("model",), "control": ()}[which],
    )
    (again / "config.json").write_text(json.dumps(settings | dict.fromkeys(gone, "nowhere")))
    run_main(
        {"dish": TRAIN_DISH, "hole": TRAIN_INPAINT, "control": TRAIN_CONTROLNET}[which],
        "--resume",
        again,
        "--device",
        "cpu",
    )
    weights = UNET if which != "control" else Path(UNET).name
    assert (again / "model" / weights).read_bytes() == (run / "model" / weights).read_bytes()


def test_a_run_of_inpaint_leaves_everything(hole_run, sd):
    for name in ("config.json", "metrics.csv", "samples.png", "loss.png", f"model/{UNET}", "model/model_index.json"):
        assert (hole_run / name).exists(), name
    before, after = (load_file(folder / UNET) for folder in (sd, hole_run / "model"))
    # it begins to look
    assert after["conv_in.weight"].shape[1] == 9 and after["conv_in.weight"][:, 4:].abs().max() > 0
    assert (
        sum(not torch.equal(before[key], after[key]) for key in before if key != "conv_in.weight")
        > 0.9 * len(before) - 1
    )
    assert open_model(hole_run).is_inpainting


def test_a_widened_network_is_the_network_it_was(sd):
    unet, x = open_model(sd).unet, torch.randn(2, 4, 16, 16)
    wide, t, text = inpaint.widened(unet).eval(), torch.tensor([3.0, 700.0]), torch.randn(2, 5, 32)
    with torch.no_grad():
        assert torch.equal(wide(torch.cat([x, torch.randn(2, 5, 16, 16)], 1), t, text), unet(x, t, text))
    assert wide.cfg.in_channels == 9


def test_the_inpainting_loss_shows_one_of_the_holes(sd):
    flags, begun = HoleFlags(model=sd, holes=2, windows=2), open_model(sd)
    views, captions = holes.load_views(flags, 64, "train", 6, 2)
    assert (
        views.shape == (12, 3, 64, 64) and len(captions) == 12 and [c.isascii() for c in captions] == [False, True] * 6
    )
    data, given = inpaint.encode_views(begun, views, captions, 2, 0), {}
    batch = data.batch(torch.arange(12))
    assert batch["holes"].shape == (12, 2, 5, 16, 16) and set(batch["holes"][:, :, 0].unique().tolist()) <= {0.0, 1.0}
    expected = backends.inpainting_channels(
        begun, views[:1].float() / 127.5 - 1, hole_masks.random_holes(24, 64, 64, 0)[:1].float()
    )
    torch.testing.assert_close(batch["holes"][0, 0], expected[0], atol=5e-3, rtol=2e-3)
    torch.testing.assert_close(batch["text"], begun.text_encoder(captions).detach(), atol=5e-3, rtol=2e-3)

    def net(x, t, text, extra):
        given["hole"] = extra
        return torch.zeros_like(x)

    holes.hole_loss(begun, 0.0, lambda batch, hole: {"extra": hole})(net, batch, BatchRandom(0, 0))
    chosen = [[torch.equal(given["hole"][i], batch["holes"][i, k]) for k in range(2)] for i in range(12)]
    assert all(any(row) for row in chosen) and len({tuple(row) for row in chosen}) > 1


def test_scenes_hold_their_picture():
    for i in range(3):
        attributes, pose = dish(0, "train", i)
        scene = scenes.wide_scene(attributes, 32, pose)
        assert scene.shape == (3, 64, 64) and np.array_equal(scene[:, 16:48, 16:48], draw(attributes, 32, pose))
        inner, outer = scene[:, 16:48, 16].astype(float), scene[:, 16:48, 15].astype(float)
        assert np.abs(inner - outer).mean() < 25  # the table goes on
    views = scenes.drawn_views("train", 3, 32, 2)
    assert views.shape == (6, 3, 32, 32) and torch.equal(views, scenes.drawn_views("train", 3, 32, 2))
    assert not torch.equal(views[0], views[1]) and not torch.equal(
        views, scenes.drawn_views("train", 3, 32, 2, seed=1)
    )


def test_holes_are_of_every_kind():
    some = hole_masks.random_holes(400, 32, 32, 7)
    share = some.float().mean((1, 2, 3))
    assert some.shape == (400, 1, 32, 32) and set(some.unique().tolist()) == {0, 1} and share.min() > 0
    assert 0.01 < float((share == 1).float().mean()) < 0.12
    assert torch.equal(some, hole_masks.random_holes(400, 32, 32, 7)) and not torch.equal(
        some, hole_masks.random_holes(400, 32, 32, 8)
    )
    path = CameraPath.plan(Move.parse("right:1"), 32, 32, 0.25)
    seen = FilmCanvas(torch.zeros(1, 32, 32)).render(path.stops()[0].window)[1]
    assert any(torch.equal(hole, (~seen).float()) for hole in hole_masks.camera_holes(32, 32))


def test_a_run_of_controlnet_leaves_everything(control_run, sd):
    """It has learned to speak; the model that listens is what it was."""
    for name in (
        "config.json",
        "metrics.csv",
        "samples.png",
        "loss.png",
        "model/config.json",
        f"model/{Path(UNET).name}",
    ):
        assert (control_run / name).exists(), name
    state = load_file(control_run / "model" / Path(UNET).name)
    spoken = [
        value
        for key, value in state.items()
        if key.startswith(("controlnet_down_blocks", "controlnet_mid_block")) and key.endswith("weight")
    ]
    assert spoken and all(value.abs().max() > 0 for value in spoken)
    saved = torch.load(control_run / "checkpoints" / "step-00000004.pt", weights_only=True)
    assert all(key.startswith("controlnet.") for key in saved["net"])


def test_what_a_controlnet_is_shown():
    image, mask = photograph()[None], right_hole()[None]
    shown = backends.controlnet_image(image, mask)
    assert (shown[..., 48:] == -1).all() and torch.equal(shown[..., :48], (image[..., :48] + 1) / 2)


def test_a_controlnet_is_heard(control_run, sd):
    """The pipeline of diffusers gives it the picture as it was shown in training;
    without a word from it another picture comes.
    """
    engine = backends.open_controlnet(str(sd), str(control_run), QUICK)
    heard, real = [], engine.pipe.controlnet.forward
    engine.pipe.controlnet.forward = lambda *args, **kwargs: (
        heard.append(kwargs["controlnet_cond"]) or real(*args, **kwargs)
    )
    image, mask = photograph(), right_hole()
    painted = engine(image, mask, "米饭", 0)
    torch.testing.assert_close(heard[0][:1], backends.controlnet_image(image[None], mask[None]))
    with torch.no_grad():
        for name, weight in engine.pipe.controlnet.named_parameters():
            if name.startswith(("controlnet_down_blocks", "controlnet_mid_block")):
                weight += 0.3
    assert (engine(image, mask, "米饭", 0) - painted).abs().max() > 1e-3


def test_diffusers_opens_what_was_trained(hole_run):
    pipe = AutoPipelineForInpainting.from_pretrained(hole_run / "model")
    assert type(pipe).__name__ == "StableDiffusionInpaintPipeline" and pipe.unet.config.in_channels == 9
    assert (
        pipe.scheduler.config.prediction_type == "v_prediction"
        and pipe.scheduler.config.timestep_spacing == "trailing"
    )


@pytest.mark.parametrize(
    ("program", "flags", "sentence"),
    [
        (TRAIN_DISH, ["--caption-dropout", 1], "--caption-dropout must be"),
        (TRAIN_DISH, ["--seed", -1], "--seed must be 0 or more"),
        (TRAIN_DISH, ["--steps", 1, "--minutes", 1], "not both"),
        (TRAIN_DISH, ["--model", "nowhere"], "there is no folder nowhere"),
        (TRAIN_DISH, ["--clip", "nowhere"], "there is no CLIP 'nowhere'"),
        (TRAIN_DISH, ["--sampler", "ddim:5000"], "takes 1 to 1000 steps"),
        (TRAIN_DISH, ["--model", "NINE"], "takes 9 channels and gives 4"),
        (TRAIN_INPAINT, ["--holes", 0], "--holes must be above 0"),
        (TRAIN_INPAINT, ["--seed", -1], "--seed must be 0 or more"),
        (TRAIN_INPAINT, ["--model", "nowhere"], "there is no folder nowhere"),
        (TRAIN_INPAINT, ["--model", "PIXELS"], "is no Stable Diffusion folder"),
        (TRAIN_INPAINT, ["--guidance", -2], "--guidance must be 0 or more"),
        (TRAIN_CONTROLNET, ["--model", "NINE"], "cannot have a ControlNet: it lacks a U-Net that takes no mask"),
    ],
)
def test_trainings_refuse_what_cannot_be(
    program, flags, sentence, nine, sd, clip_folder, pixel_model, tmp_path, command_line
):
    named = {"NINE": nine, "PIXELS": pixel_model}
    flags = [named.get(flag, flag) for flag in flags]
    given = {"--model": sd, **({"--clip": clip_folder} if program == TRAIN_DISH else {})}
    more = [part for flag, value in given.items() if flag not in flags for part in (flag, value)]
    code, _, err = command_line(program, "--n", 2, *flags, *more, "--out", tmp_path / "run", "--device", "cpu")
    assert code == 2 and sentence in err and "Traceback" not in err, err
