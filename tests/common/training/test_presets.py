"""Presets: what each kind of device gets, and that a laptop's memory holds what Apple's MPS gets."""

from dataclasses import asdict, fields, replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from common.models.unet import UNet
from common.models.unet_config import small_unet, text_unet
from common.models.vae import AutoencoderKL, small_vae
from common.training import settings
from common.training.settings import OTHER, Presets, with_preset
from helpers.programs import load_program

PROGRAMS = [
    "01_ddpm_mnist/train.py",
    "02_cfg_pokemon/train.py",
    "04_latent_sd/train.py",
    "04_latent_sd/train_vae.py",
    "06_inpaint_gif/train_clip.py",
    "06_inpaint_gif/train_text2dish.py",
    "06_inpaint_gif/train_inpaint.py",
    "06_inpaint_gif/train_controlnet.py",
]
LAPTOP = 3e9  # bytes: of 8 GB, half is for the system and other programs, and Python with torch takes about 1 GB


def presets_of(program: str) -> Presets:
    return next(value for value in vars(load_program(program)).values() if isinstance(value, Presets))


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_kind_of_device_has_a_preset_for_every_data_set(program):
    presets = presets_of(program)
    assert presets.cpu.keys() == presets.mps.keys() == presets.gpu.keys() and OTHER in presets.cpu
    assert presets.mps != presets.cpu and presets.mps != presets.gpu
    names = {field.name for field in fields(load_program(program).Args)}
    assert all(
        asdict(preset).keys() <= names
        for table in (presets.cpu, presets.mps, presets.gpu)
        for preset in table.values()
    )


def pixels_of_a_batch(preset) -> int:
    """Up to a constant, where no preset of the program says the size of its images."""
    return preset.batch_size * (getattr(preset, "size", None) or 1) ** 2


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_laptop_lies_between_a_cpu_and_a_gpu(program):
    presets = presets_of(program)
    for data in presets.cpu:
        cpu, mps, gpu = presets.cpu[data], presets.mps[data], presets.gpu[data]
        assert pixels_of_a_batch(cpu) <= pixels_of_a_batch(mps) <= pixels_of_a_batch(gpu)
        if hasattr(cpu, "channels"):
            assert sum(cpu.channels) <= sum(mps.channels) <= sum(gpu.channels)


@pytest.mark.parametrize(
    ("device", "kind"), [("cpu", "cpu"), ("mps", "mps"), ("mps:0", "mps"), ("cuda", "gpu"), ("cuda:1", "gpu")]
)
def test_the_device_chooses(monkeypatch, device, kind):
    monkeypatch.setattr(settings, "pick_device", lambda name: name)
    program = load_program(PROGRAMS[0])
    for data, key in (("mnist", "mnist"), ("path/to/faces", OTHER)):
        filled, preset = (
            with_preset(program.Args(data=data, device=device), program.PRESETS),
            getattr(program.PRESETS, kind)[key],
        )
        assert {name: getattr(filled, name) for name in asdict(preset)} == asdict(preset)


def test_what_is_given_stays(monkeypatch):
    monkeypatch.setattr(settings, "pick_device", lambda name: name)
    program = load_program(PROGRAMS[0])
    filled = with_preset(program.Args(data="mnist", device="mps", batch_size=7, steps=3), program.PRESETS)
    assert (filled.batch_size, filled.steps, filled.minutes) == (7, 3, None)
    assert filled.channels == program.PRESETS.mps["mnist"].channels


# --------------------------------------------------------------------------------------------------- a laptop's memory


def bytes_of_a_step(make_net, *inputs: tuple[int, ...]) -> int:
    """What a training step keeps at least: weights, gradients, AdamW's two averages and the EMA,
    and what backward needs.

    Fake tensors have sizes and no numbers, so nothing is computed. inputs: shapes.
    """
    kept: dict[int, torch.Tensor] = {}
    with FakeTensorMode():
        net = make_net()
        weights = sum(p.numel() * 4 for p in net.parameters())
        own = {id(p.untyped_storage()._cdata) for p in net.parameters()}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage()._cdata] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            answer = net(*(torch.zeros(shape) for shape in inputs))
            answer = answer[0] if isinstance(answer, tuple) else answer
            answer.square().mean().backward()
        activations = sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in own)
    return 5 * weights + activations


def test_the_estimate_counts_what_is_kept():
    small, large = (
        bytes_of_a_step(lambda: UNet(small_unet(16, 1, (16, 32))), (batch, 1, 16, 16), (batch,)) for batch in (1, 9)
    )
    assert small < large < 9 * small
    by_hand = bytes_of_a_step(lambda: torch.nn.Linear(10, 20), (3, 10))
    assert by_hand >= 5 * 4 * (10 * 20 + 20) + 4 * 3 * 10


@pytest.mark.parametrize("data", load_program(PROGRAMS[0]).PRESETS.mps)
def test_chapter_1_fits_a_laptop(data):
    preset = load_program(PROGRAMS[0]).PRESETS.mps[data]
    size = preset.size or {"mnist": 28, "mnist-10k": 28, "fashion_mnist": 28, "cifar10": 32}[data]
    shape = (preset.batch_size, 3, size, size)
    assert bytes_of_a_step(lambda: UNet(small_unet(size, 3, preset.channels)), shape, (preset.batch_size,)) < LAPTOP


@pytest.mark.parametrize(
    ("program", "channels", "size"), [("02_cfg_pokemon/train.py", 3, None), ("04_latent_sd/train.py", 4, 16)]
)
def test_text_to_image_fits_a_laptop(program, channels, size):
    for preset in presets_of(program).mps.values():
        side, B = size or preset.size, preset.batch_size
        net = lambda: WithText(UNet(text_unet(side, channels, preset.channels, 64)))  # noqa: B023, E731
        assert bytes_of_a_step(net, (B, channels, side, side), (B,), (B, 64, 64)) < LAPTOP


class WithText(torch.nn.Module):
    def __init__(self, unet: UNet):
        super().__init__()
        self.unet = unet

    def forward(self, x, t, text):
        return self.unet(x, t, text=text)


class Reconstruct(AutoencoderKL):
    def forward(self, x):
        return self.decode(self.encode(x).mean)


def test_the_autoencoder_fits_a_laptop():
    for preset in presets_of("04_latent_sd/train_vae.py").mps.values():
        shape = (preset.batch_size, 3, preset.size, preset.size)
        assert bytes_of_a_step(lambda: Reconstruct(small_vae(preset.size, 3, preset.channels)), shape) < LAPTOP  # noqa: B023


# ----------------------------------------------------------------------------------------------------------- chapter 5


@pytest.mark.parametrize("device", ["cpu", "mps", "cuda"])
def test_chapter_5_takes_one_image_at_a_time_where_memory_is_short(monkeypatch, tmp_path, device):
    from finetune_diffusers.training import flags

    small, large = flags.Preset(6, 16, 1e-3), flags.Preset(20, 4, 1e-5)
    args = flags.CaptionedFlags(out=tmp_path / "run")
    settled = lambda args, n: flags.settled(args, "lora-x", flags.SizePresets(small, large), n, device)  # noqa: E731
    few = settled(args, 1000)
    assert (few.steps, few.batch_size, few.gradient_accumulation) == (6, 16, 1)
    many = settled(args, flags.SMALL)
    assert (many.steps, many.batch_size, many.gradient_accumulation) == ((20, 1, 4) if device == "mps" else (20, 4, 1))
    given = settled(replace(args, batch_size=2), flags.SMALL)
    assert (given.batch_size, given.gradient_accumulation) == (2, 1)
