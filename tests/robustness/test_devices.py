"""No float64 on an accelerator, and no tensor on the wrong device:
Apple's MPS has no float64, and CI has no accelerator.

The accelerator is faked. Under FakeTensorMode tensors have a shape, a type and a device but no numbers, and so no
device is needed; a dispatch mode looks at the tensors of every operation. Reading a number (`.item()`) from a fake
tensor raises an error, so a sampler or a loss that waits for the device in its inner loop fails here as well.
Schedules are made outside: their float64 tables stay on the CPU. The device is called "lazy", since that is one of the
names for which autograd works without the device itself.
"""

import re
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from common.cli import pick_device, pick_precision
from common.data import Images
from common.diffusion.denoiser import Denoiser
from common.diffusion.diffusers_scheduler import check_pair
from common.diffusion.guidance import Guided
from common.diffusion.losses import ERRORS, WEIGHT_NAMES, diffusion_loss
from common.diffusion.sampler_spec import Sampler
from common.diffusion.samplers import SAMPLERS, ddim_inverse
from common.diffusion.schedules import (
    SCHEDULES,
    DiscreteSchedule,
    EDMSchedule,
    FlowSchedule,
    NoiseLevels,
    make_schedule,
)
from common.errors import UserError
from common.models.dit import DiT, DiTConfig
from common.models.pipeline import SamplingConfig, TextToImagePipeline
from common.models.text.conditional import ConditionalUNet
from common.models.text.encoders import small_text
from common.models.unet import UNet
from common.models.unet_config import small_unet, text_unet
from common.models.vae import AutoencoderKL, small_vae
from common.random import Noise
from common.training.vae_loss import (
    PatchDiscriminator,
    Perceptual,
    adaptive_weight,
    adversarial_loss,
    discriminator_loss,
    random_stages,
    vae_loss,
)
from helpers.programs import ROOT

DEVICE = torch.device("lazy:0")
TABLES = {name: make_schedule(name) for name in SCHEDULES}
PREDICTIONS = ("eps", "x0", "v", "flow", "edm")


def valid(schedule: str, prediction: str) -> bool:
    try:
        check_pair(schedule, prediction)
    except UserError:
        return False
    return True


PAIRS = [(schedule, prediction) for schedule in SCHEDULES for prediction in PREDICTIONS if valid(schedule, prediction)]


DOUBLE = (torch.float64, torch.complex128)
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)  # from one device to another


class NoFloat64(TorchDispatchMode):
    """Fails on the first operation of the accelerator that makes double precision, or takes it from the CPU.

    (torch lets a CPU tensor of one number take part in the device's operations.)
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given, made = (
            [x for x in tree_iter(tensors) if isinstance(x, Tensor)] for tensors in ((args, kwargs), result)
        )
        for tensor in made:
            if tensor.device.type != "cpu" and tensor.dtype in DOUBLE:
                raise AssertionError(f"{func} makes {tensor.dtype} on {tensor.device}")
        if any(x.device.type != "cpu" for x in given) and any(x.dtype in DOUBLE for x in given) and func not in COPIES:
            raise AssertionError(f"{func} takes {[(x.dtype, str(x.device)) for x in given]}")
        return result


def checked(each: Tensor, *weights: Tensor) -> None:
    """The loss of each image lies on the device in float32, and so do the gradients that follow from it."""
    assert (each.device, each.dtype) == (DEVICE, torch.float32)
    each.mean().backward()
    for weight in weights:
        assert (weight.grad.device, weight.grad.dtype) == (DEVICE, torch.float32)


def outside(method):
    """The method with real tensors, also where tensors are fake: a sampler's path is a table of numbers on the CPU."""

    def call(*args, **kwargs):
        with unset_fake_temporarily():
            return method(*args, **kwargs)

    return call


@pytest.fixture
def accelerator(monkeypatch):
    """Within the test, DEVICE is an accelerator without float64."""
    for schedule in (DiscreteSchedule, EDMSchedule, FlowSchedule):
        for method in ("noise_levels", "at_lam"):
            monkeypatch.setattr(schedule, method, outside(getattr(schedule, method)))
    monkeypatch.setattr(NoiseLevels, "after", outside(NoiseLevels.after))
    with FakeTensorMode(allow_non_fake_inputs=True), NoFloat64():
        yield


def on_accelerator(make):
    """What make() builds, with its weights on the fake accelerator."""
    with torch.device(DEVICE):
        return make()


class FakeBatchRandom:
    """Like common.random.BatchRandom, on the fake accelerator."""

    device = DEVICE

    def randn(self, shape) -> Tensor:
        return torch.randn(tuple(shape), device=DEVICE)

    def rand(self, n: int) -> Tensor:
        return torch.rand(n, device=DEVICE)

    stratified = rand


def images(*shape: int) -> Tensor:
    return torch.zeros(shape, device=DEVICE)


def net_for(channels: int = 1, out: int | None = None, classes: int | None = None) -> UNet:
    return on_accelerator(lambda: UNet(small_unet(8, channels, (8, 16), classes=classes, out=out)))


def tiny_net(out: int = 1):
    """A network of one convolution: for a sampler or a loss it is as good as a U-Net."""
    conv = on_accelerator(lambda: torch.nn.Conv2d(1, out, 3, padding=1))
    net = lambda x, t, **condition: conv(x) + t.view(-1, 1, 1, 1)  # noqa: E731
    net.weight = conv.weight
    return net


class Doubled(torch.autograd.Function):
    """A function whose gradient is made in double precision."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient.double().float()


def test_the_fake_accelerator_notices_float64(accelerator):
    with pytest.raises(AssertionError, match="float64"):
        torch.zeros(2, device=DEVICE).double()
    with pytest.raises(AssertionError, match="float64"):
        torch.zeros(2, dtype=torch.float64).to(DEVICE)
    with pytest.raises(AssertionError, match="float64"):
        torch.zeros(2, device=DEVICE) * torch.zeros((), dtype=torch.float64)
    with pytest.raises(AssertionError, match="float64"):  # in the backward pass
        Doubled.apply(torch.zeros(2, device=DEVICE, requires_grad=True)).sum().backward()
    torch.zeros(2, device=DEVICE).cpu().double()  # this way round it is allowed


def test_the_fake_accelerator_notices_other_devices_and_waiting(accelerator):
    with pytest.raises(RuntimeError):
        torch.zeros(2, device=DEVICE) + torch.zeros(2)
    with pytest.raises(Exception, match="_local_scalar_dense"):
        float(torch.zeros(2, device=DEVICE).sum())


# -------------------------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize(("schedule", "prediction"), PAIRS)
def test_losses(accelerator, schedule, prediction):
    schedule, net = TABLES[schedule], tiny_net()
    for error in ERRORS:
        for weight in WEIGHT_NAMES:
            each = diffusion_loss(
                net,
                schedule,
                prediction,
                images(4, 1, 8, 8),
                FakeBatchRandom().rand(4),
                FakeBatchRandom().randn((4, 1, 8, 8)),
                error,
                weight,
            )
            checked(each, net.weight)


def test_learned_variance(accelerator):
    net, draw = net_for(1, 2), FakeBatchRandom()
    for prediction in ("eps", "x0", "v"):
        each = diffusion_loss(
            net, TABLES["cosine"], prediction, images(4, 1, 8, 8), draw.rand(4), draw.randn((4, 1, 8, 8))
        )
        checked(each, net.conv_in.weight)


def test_loss_of_a_diffusion_transformer(accelerator):
    net, draw = on_accelerator(lambda: DiT(DiTConfig(size=8, dim=16, depth=1, classes=3))), FakeBatchRandom()
    for label in ({}, {"label": torch.zeros(4, dtype=torch.long, device=DEVICE)}):
        x0, eps = images(4, 1, 8, 8), draw.randn((4, 1, 8, 8))
        checked(diffusion_loss(net, TABLES["cosine"], "v", x0, draw.rand(4), eps, **label), net.proj_out_2.weight)


def test_loss_of_chapter_1(accelerator):
    from ddpm_mnist.trainer import make_loss

    loss = make_loss(TABLES["cosine"], "v", flip=True, class_conditional=True)
    batch = {"image": images(4, 1, 8, 8), "label": torch.zeros(4, dtype=torch.long, device=DEVICE)}
    checked(loss(net_for(classes=10), batch, FakeBatchRandom()).per_sample)


@pytest.mark.parametrize("augment", ["none", "mirror", "jitter", "turn"])
def test_loss_of_chapter_2(accelerator, augment):
    from cfg_pokemon.trainer import TextLoss

    encoder = on_accelerator(lambda: small_text(["a red creature"], dim=32))
    net = on_accelerator(lambda: ConditionalUNet(UNet(text_unet(8, 3, (8, 16), 32)), encoder))
    loss = TextLoss(TABLES["cosine"], "v", encoder.tokenizer([""])[0], 0.1, augment)
    token_ids = torch.zeros(4, 64, dtype=torch.long, device=DEVICE)
    checked(
        loss(net, {"image": images(4, 3, 8, 8), "text": token_ids}, FakeBatchRandom()).per_sample,
        *encoder.parameters(),
    )


def test_losses_of_the_autoencoder(accelerator):
    vae = on_accelerator(lambda: AutoencoderKL(small_vae(16, 3, (8, 16))))
    perceptual = on_accelerator(lambda: Perceptual([torch.nn.Conv2d(3, 8, 3)]))
    critic = on_accelerator(lambda: PatchDiscriminator(3))
    x = images(2, 3, 16, 16)
    z = vae.encode(x)
    y = vae.decode(z.sample(FakeBatchRandom().randn(z.mean.shape)))
    for error in ("l1", "l2"):
        parts = vae_loss(x, y, z, error, 1e-6, perceptual)
        looks = adversarial_loss(critic, y)
        weight = adaptive_weight(parts.total.mean(), looks.mean(), vae.decoder.conv_out.weight)
        assert weight.device == DEVICE
    checked(parts.total + weight * looks, vae.decoder.conv_out.weight, vae.encoder.conv_in.weight)
    checked(discriminator_loss(critic, x, y), *critic.parameters())


def test_the_loss_of_chapter_4s_autoencoder_as_it_is_trained(accelerator):
    from latent_sd import vae_trainer as fit

    vae = on_accelerator(lambda: AutoencoderKL(small_vae(16, 3, (8, 16))))
    args = SimpleNamespace(
        flip=True,
        latent_channels=vae.cfg.latent_channels,
        error="l1",
        kl=1e-6,
        perceptual=0.5,
        adversarial=0.5,
        adversarial_after=0.0,
    )
    loss = object.__new__(fit.VAELoss)
    loss.flags, loss.progress, loss.perceptual = (
        args,
        1.0,
        on_accelerator(lambda: Perceptual([torch.nn.Conv2d(3, 8, 3)])),
    )
    critic = on_accelerator(lambda: PatchDiscriminator(3))
    loss.critic = SimpleNamespace(
        net=critic, learn=lambda x, y: checked(discriminator_loss(critic, x, y), *critic.parameters())
    )
    checked(loss(vae, {"image": images(2, 3, 16, 16)}, FakeBatchRandom()).per_sample, vae.decoder.conv_out.weight)


def test_perceptual_stages_are_made_on_the_cpu_and_move():
    # the same network on every device
    assert {p.device.type for stage in random_stages(3) for p in stage.parameters()} == {"cpu"}


def test_loss_of_chapter_4(accelerator):
    from latent_sd.unet_trainer import LatentTextLoss

    encoder = on_accelerator(lambda: small_text(["a red creature"], dim=32))
    net = on_accelerator(lambda: ConditionalUNet(UNet(text_unet(8, 4, (8, 16), 32)), encoder))
    # its fingerprint of the autoencoder reads numbers, once, before the training
    loss = object.__new__(LatentTextLoss)
    loss.schedule, loss.prediction, loss.caption_dropout, loss.empty = (
        TABLES["cosine"],
        "v",
        0.1,
        encoder.tokenizer([""])[0],
    )
    batch = {
        "latent": images(4, 4, 8, 8),
        "std": images(4, 4, 8, 8),
        "text": torch.zeros(4, 64, dtype=torch.long, device=DEVICE),
    }
    checked(loss(net, batch, FakeBatchRandom()).per_sample)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_loss_of_chapter_5(accelerator, kind):
    from diffusers import DDPMScheduler

    from finetune_diffusers.training.loss import LatentDenoising, min_snr_weights

    scheduler = DDPMScheduler(prediction_type=kind)
    loss = LatentDenoising(
        scheduler,
        min_snr_weights(scheduler, 5.0),
        {"text": torch.zeros(3, 8)},
        0.1,
        lambda net, x, t, batch: net(x),
        noise_offset=0.1,
    )
    batch = {"mean": images(4, 4, 8, 8), "std": images(4, 4, 8, 8), "text": images(4, 3, 8), "weight": images(4)}
    net = on_accelerator(lambda: torch.nn.Conv2d(4, 4, 1))
    checked(loss(net, batch, FakeBatchRandom()).per_sample, net.weight)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_loss_of_chapter_5s_unconditional_network(accelerator, kind):
    from diffusers import DDPMScheduler

    from finetune_diffusers.training.loss import ImageDenoising

    conv = on_accelerator(lambda: torch.nn.Conv2d(3, 3, 1))
    net = lambda x, t, return_dict: (conv(x),)  # noqa: E731
    loss = ImageDenoising(DDPMScheduler(prediction_type=kind))
    checked(loss(net, {"image": images(4, 3, 8, 8)}, FakeBatchRandom()).per_sample, conv.weight)


def test_chapter_5s_controlnet_beside_its_network(accelerator):
    from finetune_diffusers.training.controlnet import predict_with_controlnet

    conv = on_accelerator(lambda: torch.nn.Conv2d(4, 4, 1))
    net = lambda x, t, words, controlnet_cond, return_dict: ((), conv(x) + controlnet_cond.mean())  # noqa: E731

    def unet(x, t, words, down_block_additional_residuals, mid_block_additional_residual, return_dict):
        return (x + mid_block_additional_residual,)

    answer = predict_with_controlnet(unet, SimpleNamespace(autocast=nullcontext))
    given = torch.zeros(4, 1, 64, 64, dtype=torch.uint8, device=DEVICE)
    batch = {"control": given, "text": images(4, 3, 8)}
    y = answer(net, images(4, 4, 8, 8), torch.zeros(4, dtype=torch.long, device=DEVICE), batch)
    checked(y.flatten(1).mean(1), conv.weight)


def test_losses_of_chapter_6(accelerator):
    from inpaint_gif.training.controlnet import control_condition
    from inpaint_gif.training.holes import hole_loss
    from inpaint_gif.training.text2dish import NameLoss

    model = SimpleNamespace(
        schedule=TABLES["cosine"], prediction="v", text_encoder=lambda texts: torch.zeros(len(texts), 2, 8)
    )
    batch = {
        "latent": images(4, 4, 8, 8),
        "std": images(4, 4, 8, 8),
        "text": images(4, 2, 8),
        "image": images(4, 3, 32, 32),
        "embeddings": images(4, 2, 8),
    }
    channels, masks = images(4, 2, 5, 8, 8), torch.zeros(4, 2, 1, 32, 32, dtype=torch.bool, device=DEVICE)
    answer = on_accelerator(lambda: torch.nn.Conv2d(4, 4, 1))
    net = lambda x, t, **condition: answer(x)  # noqa: E731
    inpainting, controlled = (
        hole_loss(model, 0.1, lambda batch, hole: {"extra": hole}),
        hole_loss(model, 0.1, control_condition),
    )
    checked(inpainting(net, batch | {"holes": channels}, FakeBatchRandom()).per_sample, answer.weight)
    checked(controlled(net, batch | {"holes": masks}, FakeBatchRandom()).per_sample, answer.weight)
    loss = object.__new__(NameLoss)  # as above
    loss.schedule, loss.prediction, loss.caption_dropout = TABLES["cosine"], "v", 0.1
    checked(loss(net, batch, FakeBatchRandom()).per_sample, answer.weight)


def test_loss_of_chapter_6s_clip(accelerator):
    from inpaint_gif.clip.loss import contrastive_loss, inverse_temperature
    from inpaint_gif.clip.trainer import augment, hide_characters

    x = augment(images(4, 3, 32, 32), FakeBatchRandom())
    ids = hide_characters(
        torch.ones(4, 5, dtype=torch.long, device=DEVICE), FakeBatchRandom().rand(20).view(4, 5), 0.2, 1, 3
    )
    vectors = torch.nn.functional.normalize(images(4, 8) + 1, dim=-1)
    per_sample = contrastive_loss(vectors, vectors, torch.arange(4, device=DEVICE), inverse_temperature(images()))
    assert x.device == ids.device == per_sample.device == DEVICE


# ------------------------------------------------------------------------------------------------------------ samplers


@pytest.mark.parametrize(
    ("schedule", "prediction"), [("cosine", "v"), ("linear_zero_snr", "v"), ("edm", "edm"), ("flow", "flow")]
)
@pytest.mark.parametrize("name", SAMPLERS)
@torch.no_grad()
def test_samplers(accelerator, name, schedule, prediction):
    *_, last = Sampler.parse(f"{name}:3").run(
        Denoiser(tiny_net(), prediction), TABLES[schedule], (2, 1, 8, 8), 0, device=DEVICE
    )
    assert (last.x.device, last.x.dtype) == (DEVICE, torch.float32)


@torch.no_grad()
def test_sampler_with_options_and_learned_variance(accelerator):
    for text, out in (("ddim:3:eta=0.5", 1), ("ddpm:3:variance=large", 1), ("ddpm:3:variance=learned", 2)):
        *_, last = Sampler.parse(text).run(
            Denoiser(tiny_net(out), "eps"), TABLES["cosine"], (2, 1, 8, 8), 0, device=DEVICE
        )
        assert last.x.device == DEVICE


@torch.no_grad()
def test_inversion(accelerator):
    *_, last = ddim_inverse(
        Denoiser(tiny_net(), "v", clip_x0=False), images(2, 1, 8, 8), TABLES["cosine"].noise_levels(3)
    )
    assert last.x.device == DEVICE


@pytest.mark.parametrize(
    "options", [{}, {"rescale": 0.7}, {"interval": (0.3, 5.0)}, {"clip_x0": "dynamic"}, {"w": lambda level: 2.0}]
)
@torch.no_grad()
def test_guidance(accelerator, options):
    guided = Guided(tiny_net(), "v", {"text": images(2, 5, 16)}, {"text": images(1, 5, 16)}, **{"w": 5.0, **options})
    *_, last = Sampler.parse("dpmpp_2m:3").run(guided, TABLES["cosine"], (2, 1, 8, 8), 0, device=DEVICE)
    assert last.x.device == DEVICE


@torch.no_grad()
def test_chapter_3s_own_solvers_and_interpolations(accelerator):
    from ddim_schedules import solvers
    from ddim_schedules.interpolation import METHODS, interpolate
    from ddim_schedules.networks import ddpm_naive

    net, schedule, tau, x = tiny_net(), TABLES["cosine"], [900, 500, 100, 0], images(2, 1, 8, 8)
    alpha_bar = schedule.alpha_bar.tolist()  # numbers, since a fake tensor has none
    for solver in (solvers.ddim, solvers.ddpm_respaced, solvers.ddpm_naive, solvers.euler_ancestral):
        *_, last = solver(net, x, alpha_bar, tau, Noise(0))
        assert (last.device, last.dtype) == (DEVICE, torch.float32)
    *_, last = solvers.invert(net, x, alpha_bar, tau)
    assert last.device == solvers.slerp(x, last, 0.3).device == DEVICE
    denoise_unclipped, a = Denoiser(net, "v", clip_x0=False), images(1, 1, 8, 8)
    for method in METHODS:
        made = interpolate(
            method, Denoiser(net, "v"), denoise_unclipped, schedule.noise_levels(4), a, a + 1, [0.0, 0.5, 1.0], 0.5, 0
        )
        assert (len(made), made.device) == (3, DEVICE)
    plain = SimpleNamespace(noise_levels=schedule.noise_levels, alpha_bar=alpha_bar)
    *_, step = ddpm_naive(3, Denoiser(net, "v"), plain, (2, 1, 8, 8), Noise(0), DEVICE)
    assert step.x.device == DEVICE


# ----------------------------------------------------------------------------------------------------------- pipelines


def models(extra: int = 0) -> dict:
    """The networks of a small Stable Diffusion."""
    encoder = on_accelerator(lambda: small_text(["a red creature"], dim=32))
    unet = on_accelerator(lambda: UNet(text_unet(8, 4, (8, 16), 32)))
    if extra:
        unet.conv_in = on_accelerator(lambda: torch.nn.Conv2d(4 + extra, 8, 3, padding=1))
    return {"vae": on_accelerator(lambda: AutoencoderKL(small_vae(16, 3, (8, 16)))), "unet": unet, "encoder": encoder}


def test_latent_pipeline(accelerator, monkeypatch):
    parts = models()
    made = TextToImagePipeline(parts["unet"], TABLES["cosine"], "v", parts["encoder"], parts["vae"])
    side, prompts = made.vae.cfg.factor * 8, ["a red creature"] * 2
    for config in (
        SamplingConfig(sampler="dpmpp_2m:2", size=side),
        SamplingConfig(sampler="ddpm:2", rescale=0.7, size=side),
    ):
        *_, last = made.txt2img_steps(prompts, config)
        assert last.x.device == DEVICE
    *_, last = made.img2img_steps(torch.zeros(1, 3, side, side), prompts, 0.5, SamplingConfig(sampler="ddim:4"))
    assert last.x.device == DEVICE
    # whether all is finite is read once for each batch, after the sampling
    monkeypatch.setattr(Tensor, "__bool__", lambda tensor: True)
    assert made.decode(last.x).device.type == "cpu"


def test_inpainting_and_repaint(accelerator):
    from inpaint_gif.inpainting import repaint

    parts, schedule, config = models(5), TABLES["cosine"], SamplingConfig(sampler="ddim:3")
    made = TextToImagePipeline(parts["unet"], schedule, "v", parts["encoder"], parts["vae"])
    *_, last = made.from_noise(
        made.guided(["a red creature"] * 2, config, images(1, 5, 8, 8)), 2, (8, 8), config, Noise(0)
    )
    assert last.x.device == DEVICE

    denoise, mask = Denoiser(tiny_net(), "v"), images(1, 1, 8, 8)
    *_, last = repaint.repaint(
        denoise, images(1, 1, 8, 8), schedule.noise_levels(4), images(1, 1, 8, 8), mask, Noise(0), 2, 2
    )
    assert last.x.device == DEVICE


def test_regional_prompts(accelerator, monkeypatch):
    monkeypatch.setattr(Tensor, "__bool__", lambda tensor: True)  # the weights are checked once, before the sampling
    from inpaint_gif.inpainting.regional_prompts import Region, in_regions, in_stages, progress_along, region_weights

    denoise = Denoiser(tiny_net(), "v")
    rest, right = (weight.to(DEVICE) for weight in region_weights([Region.parse("right:rice")], 8, 8))
    everywhere = in_regions([(denoise, rest), (denoise, right)])
    levels = TABLES["cosine"].noise_levels(3)
    staged = in_stages([(0.0, everywhere), (0.5, denoise)], outside(progress_along)(levels))
    *_, last = SAMPLERS["ddim"](staged, images(2, 1, 8, 8), levels)
    assert last.x.device == DEVICE


def test_a_pipeline_of_pixels(accelerator, monkeypatch):
    # whether all is finite is read once for each batch, after the sampling
    monkeypatch.setattr(Tensor, "__bool__", lambda tensor: True)
    encoder, net = (
        on_accelerator(lambda: small_text(["a red creature"], dim=32)),
        on_accelerator(lambda: UNet(text_unet(8, 3, (8, 16), 32))),
    )
    pipeline = TextToImagePipeline(net, TABLES["cosine"], "v", encoder)
    assert (
        pipeline.txt2img(["a red creature"] * 2, SamplingConfig(sampler="ddim:2:eta=1", clip_x0="dynamic")).device.type
        == "cpu"
    )


def test_the_losses_that_chapter_2_compares_are_computed_on_the_device(accelerator, monkeypatch):
    from cfg_pokemon.caption_sensitivity import BANDS, caption_losses

    encoder, net = (
        on_accelerator(lambda: small_text(["a red creature"], dim=32)),
        on_accelerator(lambda: UNet(text_unet(8, 3, (8, 16), 32))),
    )
    data = Images("pictures", torch.zeros(2, 3, 8, 8, dtype=torch.uint8), captions=("a", "b"))
    # a sum is read once for each batch
    monkeypatch.setattr(Tensor, "__float__", lambda tensor: float(tensor.device == DEVICE))
    found = caption_losses(TextToImagePipeline(net, TABLES["cosine"], "v", encoder), data)
    assert found["right"] == found["wrong"] == [0.5] * len(BANDS)


@torch.no_grad()
def test_text_encoders_of_transformers(accelerator):
    from transformers import CLIPTextConfig, CLIPTextModel

    small = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "vocab_size": 50,
    }
    network = on_accelerator(lambda: CLIPTextModel(CLIPTextConfig(**small)).eval())
    assert network(input_ids=torch.ones(2, 7, dtype=torch.long, device=DEVICE)).last_hidden_state.device == DEVICE


# ---------------------------------------------------------------------------------------------------------- evaluators

ALLOWED = {"common/diffusion/schedules.py", "common/random.py"}  # their tables are made on the CPU and stay there


def test_evaluators_leave_the_device_before_they_become_float64():
    """Evaluators read numbers, which a fake tensor has none of;
    so their source is looked at: .cpu() comes before .double().
    """
    found, direct = 0, re.compile(r"(?<!\.cpu\(\))\.double\(\)|\.to\([^()]*float64[^()]*\)|\.type\(torch\.float64\)")
    for path in [*(ROOT / "common").rglob("*.py"), *ROOT.glob("0*/**/*.py")]:
        name, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
        found += text.count(".cpu().double()")
        if name not in ALLOWED and not path.name.startswith("lesson.") and "exercises" not in path.parts:
            assert not direct.search(text), f"{name}: {direct.search(text)}"
    assert found > 20


def test_evaluators_take_pictures_from_the_device(accelerator):
    from common.evaluate import creature_classifier, digit_classifier

    features, classes = digit_classifier.classify(
        on_accelerator(digit_classifier.DigitClassifier).eval(), images(2, 1, 28, 28)
    )
    assert features.device.type == classes.device.type == "cpu"
    creatures = on_accelerator(creature_classifier.CreatureClassifier).eval()
    assert creature_classifier.classify(creatures, images(2, 3, 32, 32))[0].device == DEVICE


# --------------------------------------------------------------------------------------------- choosing, and measuring


@pytest.fixture
def two_gpus(monkeypatch):
    """As if there were two GPUs. Returns what was set as the current one."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: SimpleNamespace(cpu=lambda: None))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return chosen


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_each_process_of_torchrun_takes_its_own_gpu(two_gpus, monkeypatch, name):
    assert pick_device(name) == "cuda" and two_gpus == []
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert pick_device(name) == "cuda" and two_gpus == [1]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="a machine with 2 GPUs, counted from 0; lower --nproc_per_node"):
        pick_device(name)


def test_a_numbered_gpu_is_for_one_process(two_gpus, monkeypatch):
    assert pick_device("cuda:1") == "cuda:1" and two_gpus == ["cuda:1"]
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(UserError, match="use --device cuda"):
        pick_device("cuda:1")
    assert pick_device("cpu") == "cpu"


def test_auto_takes_the_cpu_where_the_device_gives_no_memory(monkeypatch):
    def zeros(*shape, device):
        raise RuntimeError(
            "MPS backend out of memory (MPS allocated: 0 bytes, max allowed: 7.93 GB). Tried to allocate 256 bytes on private pool."
        )

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", zeros)
    with pytest.warns(UserWarning, match="'mps' cannot be used .MPS backend out of memory.*computing on the CPU"):
        assert pick_device("auto") == "cpu"
    with pytest.raises(UserError, match="'mps' cannot be used"):
        pick_device("mps")


@pytest.mark.parametrize(("device", "precision"), [("mps", "no"), ("mps:0", "no"), ("cuda", "bf16")])
def test_precision(monkeypatch, device, precision):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert pick_precision("auto", device) == precision
    assert pick_precision("fp16", device) == "fp16"


def test_memory_of_apples_gpu_is_read_from_its_allocator(monkeypatch):
    from finetune_diffusers.training.loop import memory_usage as cost

    for name, value in (("current_allocated_memory", 3), ("driver_allocated_memory", 5), ("empty_cache", None)):
        monkeypatch.setattr(torch.mps, name, lambda value=value: value)
    mps, watched = torch.device("mps"), cost.Cost(weights=1)
    with watched.watching(0, mps):
        pass
    assert (watched.before, watched.peak) == (3, 5)
    assert "GPU memory, peak" in watched.table() and "of GPU memory" in cost.time_and_memory(1.0, mps)
