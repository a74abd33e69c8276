"""controlnet.py, on a tiny random Stable Diffusion."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from PIL import Image

from common.data import load
from common.errors import UserError
from common.io.pixels import to_float
from finetune_diffusers.data.edges import edges
from finetune_diffusers.data.latent_dataset import encode
from finetune_diffusers.training import controlnet
from finetune_diffusers.training.loop.trainer import Tuner
from finetune_diffusers.training.loss import latent_denoising
from helpers.finetune_programs import CONTROLNET, draw, plain
from helpers.programs import load_program, run_main


def test_an_untrained_controlnet_changes_nothing(base):
    """Its convolutions begin at zero.
    And it takes edges of the size of the images, f = 4 times that of the latents.
    """
    pipe = plain(base)
    net = controlnet.new_controlnet(pipe.unet, pipe.vae_scale_factor, 0)
    assert net.config.conditioning_embedding_out_channels == (16, 32, 64)
    pipe.set_progress_bar_config(disable=True)
    before = draw(pipe)
    controlled = controlnet.with_controlnet(pipe, net)
    wanted = edges(to_float(load("creatures", 32, n=1).pixels)).expand(-1, 3, -1, -1)
    assert np.array_equal(draw(controlled, image=wanted), before)
    with torch.no_grad():
        for part in net.controlnet_down_blocks:
            part.weight.add_(0.1)
    assert not np.array_equal(draw(controlled, image=wanted), before)  # it would show


def test_a_trained_controlnet_opens_in_plain_diffusers_and_changes_pictures(base, controlled):
    net = ControlNetModel.from_pretrained(controlled / "controlnet")
    pipe = StableDiffusionControlNetPipeline.from_pretrained(base, controlnet=net)
    some, none = torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32)
    some[:, :, 10:20, 10] = 1
    assert (draw(pipe, image=some) != draw(pipe, image=none)).any()
    found = json.loads((controlled / "results.json").read_text())
    assert set(found["measures"]) == {"without control", "with control", "another image", "limit"}
    for measures in found["measures"].values():
        strict, tolerant = (
            measures[f"agreement of edges, {how} (F1)"]["value"] for how in ("to the pixel", "one pixel aside counts")
        )
        assert 0 <= strict <= tolerant <= 1
    assert found["cost"]["trained"] == found["cost"]["weights"] == sum(p.numel() for p in net.parameters())
    assert (controlled / "samples" / "step-000003.png").exists()


def test_the_unet_beside_a_controlnet_is_frozen(base, tmp_path):
    """Gradients go through it, to the ControlNet, and change nothing in it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    pipe, accelerator = plain(base), Accelerator(cpu=True)
    pipe.unet.requires_grad_(False)
    images = load("creatures", 32, n=2)
    data = encode(pipe, images, images.captions, True, edges=controlnet.edges_of(images.pixels, 0.2))
    args = load_program(CONTROLNET).Args(steps=3, batch_size=2, lr=1e-2, warmup=0, out=tmp_path)
    net = controlnet.new_controlnet(pipe.unet, 4, 0)
    loss = latent_denoising(pipe, data, args, controlnet.predict_with_controlnet(pipe.unet, accelerator))
    before, start = [p.clone() for p in pipe.unet.parameters()], [p.detach().clone() for p in net.parameters()]
    for _ in Tuner(net, data, loss, args, accelerator).run():
        pass
    assert all(torch.equal(a, b) for a, b in zip(before, pipe.unet.parameters(), strict=True))
    moved = {name for (name, p), old in zip(net.named_parameters(), start, strict=True) if not torch.equal(p, old)}
    assert {
        "controlnet_mid_block.weight",
        "controlnet_cond_embedding.conv_in.weight",
        "mid_block.resnets.0.conv1.weight",
    } <= moved


def test_a_resumed_controlnet_is_the_same(controlled, tmp_path):
    again = tmp_path / "run"
    shutil.copytree(controlled, again)
    shutil.rmtree(again / "checkpoints" / "step-00000004")
    shutil.rmtree(again / "controlnet")
    run_main(CONTROLNET, "--resume", again, "--device", "cpu")
    weights = "controlnet/diffusion_pytorch_model.safetensors"
    assert (again / weights).read_bytes() == (controlled / weights).read_bytes()


def test_a_controlnet_is_used_on_ones_own_pictures(base, controlled, tmp_path, command_line):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(tmp_path / "mine.png")
    flags = [
        "--model",
        base,
        "--size",
        32,
        "--sample-steps",
        1,
        "--device",
        "cpu",
        "--measure",
        2,
        "--use",
        controlled,
    ]
    code, said, err = command_line(
        CONTROLNET,
        *flags,
        "--image",
        tmp_path / "mine.png",
        "--prompts",
        "a red one",
        "a blue one",
        "--sheet",
        tmp_path / "a.png",
    )
    assert code == 0 and "agreement of edges" in said and (tmp_path / "a.png").exists(), err
    assert "another image" not in said, "several prompts for one picture: there is no other to compare with"
    code, said, err = command_line(CONTROLNET, *flags, "--sheet", tmp_path / "b.png")
    assert code == 0 and (tmp_path / "b.png").exists() and "another image" in said and "limit" in said, err
    found = re.search(r"to the pixel.*" + 4 * r" (0\.\d+) \[.*?\].*?", said)
    assert found and all(0 < float(value) < 1 for value in found.groups()), "without, with, another image, limit"
    code, _, err = command_line(CONTROLNET, *flags, "--image", tmp_path / "mine.png", "--sheet", tmp_path / "c.png")
    assert code == 2 and "--prompts" in err
    code, _, err = command_line(CONTROLNET, *flags[:-1], base, "--sheet", tmp_path / "c.png")
    assert code == 2 and "holds no ControlNet" in err


def test_a_controlnet_of_another_model_is_refused(base, controlled, tmp_path):
    shutil.copytree(controlled / "controlnet", tmp_path / "net")
    unet = plain(base).unet
    assert isinstance(controlnet.open_controlnet(tmp_path / "net", unet, 4), ControlNetModel)
    with pytest.raises(UserError, match="downsamples edges 4 times"):
        controlnet.open_controlnet(tmp_path / "net", unet, 8)
    unet.register_to_config(cross_attention_dim=768)
    with pytest.raises(UserError, match="cross_attention_dim"):
        controlnet.open_controlnet(tmp_path / "net", unet, 4)
    (tmp_path / "net" / "diffusion_pytorch_model.safetensors").write_bytes(b"not this")
    with pytest.raises(UserError, match="cannot be opened"):
        controlnet.open_controlnet(tmp_path / "net", plain(base).unet, 4)
