"""Our autoencoder is the AutoencoderKL of `diffusers`: same keys, same shapes, same outputs.
And its loss does what it says.
"""

import copy
import json
import random
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL as Theirs
from safetensors.torch import load_file, save_file
from torch.distributions import Normal, kl_divergence
from torchvision.transforms.v2.functional import gaussian_blur

from common.data import load
from common.errors import UserError
from common.evaluate.digit_classifier import load_digit_classifier
from common.io.state_dict import OLD_NAMES, new_names
from common.models.diffusers_configs import vae_from_diffusers, vae_to_diffusers
from common.models.model_folder import load_vae, save_vae
from common.models.vae import AutoencoderKL, Gaussian, VAEConfig, measure_scaling_factor, small_vae
from common.training.vae_loss import (
    LARGEST_WEIGHT,
    PatchDiscriminator,
    Perceptual,
    adaptive_weight,
    adversarial_loss,
    discriminator_loss,
    random_stages,
    reconstruction,
    vae_loss,
)

WEIGHTS = "diffusion_pytorch_model.safetensors"
CFG = VAEConfig(size=8, image_channels=1, latent_channels=2, channels=(8, 16), groups=4, scaling_factor=0.7)
STABLE_DIFFUSION_1 = VAEConfig(512, 3, 4, (128, 256, 512, 512), layers=2, scaling_factor=0.18215)


def random_config(seed: int) -> VAEConfig:
    """A small autoencoder with every switch thrown at random."""
    r = random.Random(seed)
    return VAEConfig(
        size=r.choice([16, 32]),
        image_channels=r.choice([1, 3, 4]),
        latent_channels=r.choice([1, 3, 4, 8]),
        channels=tuple(r.choice([8, 16, 24]) for _ in range(r.choice([1, 2, 3, 4]))),
        layers=r.choice([1, 2]),
        mid_attention=r.random() < 0.6,
        groups=r.choice([1, 2, 4]),
        scaling_factor=r.choice([0.18215, 1.3]),
    )


def build_theirs(config: dict) -> Theirs:
    return Theirs(**{key: value for key, value in config.items() if not key.startswith("_")}).eval()


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_vae(cfg: VAEConfig = CFG, seed: int = 0) -> AutoencoderKL:
    torch.manual_seed(seed)
    return AutoencoderKL(cfg).eval()


@pytest.fixture
def folder(tmp_path) -> Path:
    save_vae(tmp_path / "vae", make_vae())
    return tmp_path / "vae"


@torch.no_grad()
def agree(ours: AutoencoderKL, theirs: Theirs) -> None:
    f, cfg = ours.cfg.factor, ours.cfg
    x, z = normal(2, cfg.image_channels, 2 * f, f), normal(2, cfg.latent_channels, 1, 3)
    mine, other = ours.encode(x), theirs.encode(x).latent_dist
    for a, b in ((mine.mean, other.mean), (mine.logvar, other.logvar), (ours.decode(z), theirs.decode(z).sample)):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        assert b.std() > 1e-3  # a network that answers zero would agree with anything
    torch.testing.assert_close(mine.kl(), other.kl(), rtol=1e-5, atol=1e-5)


# ----------------------------------------------------------------------------------------------- the same as diffusers


@pytest.mark.parametrize("seed", range(24))
def test_same_outputs_with_weights_loaded_both_ways(seed):
    torch.manual_seed(seed)
    cfg = random_config(seed)
    config = vae_to_diffusers(cfg)
    ours, theirs = AutoencoderKL(cfg).eval(), build_theirs(config)

    ours.load_state_dict(theirs.state_dict(), strict=True)
    agree(ours, theirs)

    fresh = AutoencoderKL(cfg).eval()
    theirs.load_state_dict(fresh.state_dict(), strict=True)
    agree(fresh, theirs)

    full = dict(theirs.config) | {"_class_name": "AutoencoderKL"}  # every setting, as save_pretrained writes it
    assert vae_from_diffusers(config) == vae_from_diffusers(full) == cfg


def test_the_random_configurations_throw_every_switch():
    configs = [random_config(seed) for seed in range(24)]
    for field in fields(VAEConfig):
        assert len({getattr(cfg, field.name) for cfg in configs}) > 1, field.name
    assert {len(cfg.channels) for cfg in configs} == {1, 2, 3, 4}


def test_each_setting_changes_the_output():
    """A switch that did nothing would pass a parity test whose two sides both ignore it."""
    vae, x = make_vae(), normal(1, 1, 8, 8)
    with torch.no_grad():
        base = vae(x, normal(1, 2, 4, 4))[0]
        for change in ({"groups": 2}, {"mid_attention": False}):
            other = AutoencoderKL(replace(CFG, **change)).eval()
            other.load_state_dict(vae.state_dict(), strict=False)
            assert not torch.allclose(other(x, normal(1, 2, 4, 4))[0], base, atol=1e-6), change


def test_full_size_stable_diffusion_has_the_same_weights():
    with torch.device("meta"):  # shapes only, no memory
        ours, theirs = (
            AutoencoderKL(STABLE_DIFFUSION_1).state_dict(),
            build_theirs(vae_to_diffusers(STABLE_DIFFUSION_1)).state_dict(),
        )
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}
    assert sum(value.numel() for value in ours.values()) == 83_653_863


def test_configuration_file_of_stable_diffusion_1():
    """As Stable Diffusion 1.x ships it: written by an old release, without the scaling factor that it needs."""
    config = {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.2.2",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "out_channels": 3,
        "sample_size": 512,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }
    assert vae_from_diffusers(config) == STABLE_DIFFUSION_1


REFUSED = [
    ("_class_name", "AsymmetricAutoencoderKL"),
    ("_class_name", None),
    ("out_channels", 3),
    ("latent_channels", 0),
    ("in_channels", "three"),
    ("layers_per_block", [1, 2]),
    ("block_out_channels", []),
    ("block_out_channels", [8, 0]),
    ("block_out_channels", 16),
    ("norm_num_groups", 3),
    ("norm_num_groups", None),
    ("down_block_types", ["DownEncoderBlock2D"]),  # one too few
    ("down_block_types", ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]),
    ("up_block_types", ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"]),
    ("act_fn", "relu"),
    ("scaling_factor", 0),
    ("scaling_factor", None),
    ("shift_factor", 0.1159),
    ("latents_mean", [0.0, 0.0]),
    ("latents_std", [1.0, 1.0]),
    ("use_quant_conv", False),
    ("use_post_quant_conv", False),
    ("use_tiling", True),
    ("a_setting_of_the_future", 1),
]


@pytest.mark.parametrize(("key", "value"), REFUSED, ids=[f"{key}={value}" for key, value in REFUSED])
def test_what_we_cannot_honour_is_refused_by_name(key, value):
    config = vae_to_diffusers(CFG)
    vae_from_diffusers(config)  # well without the change
    with pytest.raises(UserError, match=rf"\b{key}\b"):
        vae_from_diffusers(config | {key: value})


def test_no_setting_of_diffusers_is_unknown_to_us():
    """Every default is either translated or held fixed: nothing passes unseen."""
    with torch.device("meta"):
        cfg = vae_from_diffusers(dict(Theirs().config) | {"_class_name": "AutoencoderKL"})
    assert cfg == vae_from_diffusers({"_class_name": "AutoencoderKL"})


# ------------------------------------------------------------------------------------------------------- model folders


def test_there_and_back(folder):
    saved, loaded = make_vae(), load_vae(folder)
    assert loaded.cfg == CFG and not loaded.training
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in saved.state_dict().items())


def test_diffusers_opens_ours(folder):
    theirs = Theirs.from_pretrained(folder).eval()
    assert theirs.config.scaling_factor == 0.7
    agree(load_vae(folder), theirs)


@pytest.mark.parametrize("seed", [0, 5])
def test_we_open_theirs(tmp_path, seed):
    torch.manual_seed(seed)
    theirs = build_theirs(vae_to_diffusers(random_config(seed)))
    theirs.save_pretrained(tmp_path)
    ours = load_vae(tmp_path)
    assert ours.cfg == random_config(seed)
    agree(ours, theirs)
    save_vae(tmp_path / "again", ours)  # and what came from them goes back to them
    agree(ours, Theirs.from_pretrained(tmp_path / "again").eval())


def test_it_is_found_in_a_pipeline_and_in_a_run(tmp_path):
    for place in ("vae", "model/vae"):
        root = tmp_path / place.replace("/", "_")
        save_vae(root / place, make_vae())
        (root / "config.json").write_text('{"steps": 5}')  # a run's own settings do not deceive
        assert load_vae(root).cfg == CFG


def test_half_precision_on_disk_is_single_precision_in_memory(tmp_path):
    save_vae(tmp_path, make_vae(), torch.float16)
    assert {value.dtype for value in load_file(tmp_path / WEIGHTS).values()} == {torch.float16}
    vae = load_vae(tmp_path)
    assert {p.dtype for p in vae.parameters()} == {torch.float32}
    x = normal(1, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(vae.encode(x).mean, make_vae().encode(x).mean, rtol=0, atol=1e-2)


def test_the_attention_of_old_checkpoints(folder):
    """query, key, value and proj_attn, as in the first Stable Diffusion folders."""
    weights, old = load_file(folder / WEIGHTS), {}
    for key, value in weights.items():
        for before, now in OLD_NAMES.items():
            key = key.replace(f".{now}.", f".{before}.")
        old[key] = value
    assert len(old.keys() - weights.keys()) == 16 and "encoder.mid_block.attentions.0.proj_attn.bias" in old
    assert new_names(old).keys() == weights.keys() and new_names(weights).keys() == weights.keys()
    save_file(old, folder / WEIGHTS, metadata={"format": "pt"})
    agree(load_vae(folder), Theirs.from_pretrained(folder).eval())


def test_other_names_stay_as_they_are():
    """Only the attention was renamed: a stray `key` elsewhere is for load_strictly to refuse."""
    names = {
        "encoder.key.weight": 1,
        "decoder.mid_block.attentions.0.keys.weight": 2,
        "decoder.mid_block.attentions.0.group_norm.weight": 3,
    }
    assert new_names(names) == names


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"block_out_channels": [16, 16]}, r"encoder.conv_in.weight is \(8, 1, 3, 3\) there, \(16, 1, 3, 3\) here"),
        ({"layers_per_block": 2}, "encoder.down_blocks.0.resnets.1.norm1.weight is missing"),
        (
            {"mid_block_add_attention": False},
            "decoder.mid_block.attentions.0.group_norm.bias is unknown .and 19 more differences",
        ),
        ({"latent_channels": 3}, "conv_out.weight is"),
    ],
)
def test_weights_of_another_architecture(folder, change, named):
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(UserError, match=f"weights of another architecture: .*{named}") as problem:
        load_vae(folder)
    assert "\n" not in str(problem.value)


def test_folders_that_hold_no_autoencoder(folder, tmp_path):
    with pytest.raises(UserError, match="there is no folder .*nowhere"):
        load_vae(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no autoencoder"):
        load_vae(tmp_path / "empty")
    raw = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(raw[: len(raw) // 2])
    with pytest.raises(UserError, match=f"{WEIGHTS} is damaged"):
        load_vae(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(UserError, match=f"{WEIGHTS} is missing"):
        load_vae(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json cannot be read"):
        load_vae(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="config.json is missing"):
        load_vae(tmp_path)


# -------------------------------------------------------------------------------------------------------- the Gaussian


def test_kl_is_that_of_torch():
    z = Gaussian(2 * normal(3, 4, 5, 5, seed=1), normal(3, 4, 5, 5, seed=2))
    expected = kl_divergence(Normal(z.mean, (z.logvar / 2).exp()), Normal(0, 1)).sum((1, 2, 3))
    torch.testing.assert_close(z.kl(), expected)
    assert torch.equal(Gaussian(torch.zeros(2, 4, 3, 3), torch.zeros(2, 4, 3, 3)).kl(), torch.zeros(2))


def test_samples_have_the_mean_and_variance_that_were_said():
    z = Gaussian(torch.tensor([-1.0, 0.0, 3.0]), torch.tensor([0.5, 2.0, 4.0]).log())
    samples = z.sample(normal(40_000, 3))
    torch.testing.assert_close(samples.mean(0), z.mean, rtol=0, atol=0.05)
    torch.testing.assert_close(samples.var(0), z.logvar.exp(), rtol=0.03, atol=0)
    assert torch.equal(z.sample(torch.zeros(3)), z.mode()) and torch.equal(z.mode(), z.mean)


def test_gradients_pass_through_the_sample():
    """d z / d mean = 1, d z / d logvar = std eps / 2."""
    mean, logvar, eps = normal(5).requires_grad_(), normal(5, seed=1).requires_grad_(), normal(5, seed=2)
    Gaussian(mean, logvar).sample(eps).sum().backward()
    torch.testing.assert_close(mean.grad, torch.ones(5))
    torch.testing.assert_close(logvar.grad, (logvar / 2).exp().detach() * eps / 2)


@pytest.mark.parametrize(("said", "kept"), [(100.0, 20.0), (-100.0, -30.0), (3.0, 3.0)])
def test_the_log_variance_is_clamped(said, kept):
    vae = make_vae()
    with torch.no_grad():
        vae.quant_conv.weight.zero_()
        vae.quant_conv.bias.copy_(torch.tensor([0.0, 0.0, said, said]))
        assert torch.equal(vae.encode(normal(1, 1, 8, 8)).logvar, torch.full((1, 2, 4, 4), kept))


# ----------------------------------------------------------------------------------------------------- use, and misuse


@pytest.mark.parametrize("channels", [(8,), (8, 16), (8, 8, 16), (8, 8, 8, 8)])
def test_shapes(channels):
    cfg = small_vae(16, 3, channels, latent_channels=5)
    vae, f = make_vae(cfg), cfg.factor
    assert f == 2 ** (len(channels) - 1)
    with torch.no_grad():
        y, z = vae(normal(2, 3, 16, 8), normal(2, 5, 16 // f, 8 // f))
    assert y.shape == (2, 3, 16, 8) and z.mean.shape == z.logvar.shape == (2, 5, 16 // f, 8 // f)


def test_called_as_a_whole_it_encodes_samples_and_decodes():
    vae, x, eps = make_vae(), normal(2, 1, 8, 8), normal(2, 2, 4, 4, seed=1)
    with torch.no_grad():
        y, z = vae(x, eps)
        assert torch.equal(y, vae.decode(vae.encode(x).sample(eps)))
        assert torch.equal(z.mean, vae.encode(x).mean)


def test_scaled_latents_have_unit_variance():
    z = 3.5 * normal(4, 2, 16, 16) + 1
    vae = make_vae(replace(CFG, scaling_factor=measure_scaling_factor(z)))
    assert vae.scale(z).std(correction=0).item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(vae.unscale(vae.scale(z)), z)
    assert make_vae(replace(CFG, scaling_factor=1.0)).scale(z).equal(z)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 9, 8), (2, 1, 8, 7), (1, 8, 8), (2, 8, 8, 1)])
def test_images_that_do_not_fit(shape):
    with pytest.raises(UserError, match=r"takes images \(N, 1, H, W\) with H and W multiples of 2, not") as problem:
        make_vae().encode(torch.zeros(shape))
    assert str(shape) in str(problem.value)


def test_latents_that_do_not_fit():
    for shape in ((1, 4, 4, 4), (2, 4, 4)):
        with pytest.raises(UserError, match=r"decodes latents \(N, 2, h, w\), not"):
            make_vae().decode(torch.zeros(shape))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((64, 3, ()), "--channels must be one or more multiples of 8, not none"),
        ((64, 3, (32, 12)), "multiples of 8, not 32 12"),
        ((64, 3, (0,)), "multiples of 8"),
        ((30, 3, (8, 8, 8)), "a multiple of 4, not 30 pixels"),
        ((0, 3, (8, 8)), "a multiple of 2, not 0 pixels"),
    ],
)
def test_autoencoders_that_cannot_be(arguments, named):
    with pytest.raises(UserError, match=named):
        small_vae(*arguments)


# -------------------------------------------------------------------------------------------------------------- losses


def pair(channels: int = 1, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    return normal(3, channels, size, size), normal(3, channels, size, size, seed=1)


def some_gaussian(scale: float = 1.0) -> Gaussian:
    return Gaussian(scale * normal(3, 2, 4, 4, seed=2), normal(3, 2, 4, 4, seed=3))


def test_the_loss_is_the_sum_of_its_parts():
    (x, y), z, perceptual = pair(), some_gaussian(), Perceptual(random_stages(1))
    parts = vae_loss(x, y, z, "l2", 0.1, perceptual, 0.3)
    torch.testing.assert_close(parts.pixels, (x - y).square().mean((1, 2, 3)))
    torch.testing.assert_close(parts.kl, z.kl() / 256)
    torch.testing.assert_close(parts.perceptual, perceptual(x, y))
    torch.testing.assert_close(parts.total, parts.pixels + 0.1 * parts.kl + 0.3 * parts.perceptual)
    plain = vae_loss(x, y, z, kl_weight=0.0)
    torch.testing.assert_close(plain.pixels, (x - y).abs().mean((1, 2, 3)))
    assert torch.equal(plain.total, plain.pixels) and plain.perceptual.abs().max() == 0


def test_images_do_not_mix_in_the_loss():
    """The error of an image is its own: the mean over a batch is then the mean over any parts of
    it, as accumulation needs.
    """
    (x, y), z, perceptual = pair(), some_gaussian(), Perceptual(random_stages(1))
    whole = vae_loss(x, y, z, perceptual=perceptual).total
    alone = [
        vae_loss(
            x[i : i + 1], y[i : i + 1], Gaussian(z.mean[i : i + 1], z.logvar[i : i + 1]), perceptual=perceptual
        ).total
        for i in range(3)
    ]
    torch.testing.assert_close(whole, torch.cat(alone))


def test_with_no_kl_weight_the_variance_is_free_and_with_one_it_is_not():
    vae, x = make_vae(), normal(2, 1, 8, 8)
    for weight in (0.0, 1.0):
        vae.zero_grad()
        y, z = vae(x, torch.zeros(2, 2, 4, 4))  # without noise, only the KL sees the variance
        vae_loss(x, y, z, kl_weight=weight).total.mean().backward()
        of_variance = vae.quant_conv.bias.grad[2:].abs().max()
        assert (of_variance > 0) == (weight > 0)


def test_the_bound_of_kingma_and_welling():
    """l2 with weight w is -2 s^2 times the bound per pixel value, less a constant,
    for pixels of variance s^2 = w / 2.
    """
    (x, y), z, w = pair(), some_gaussian(), 0.08
    s = (w / 2) ** 0.5
    constant = Normal(0.0, s).log_prob(torch.tensor(0.0))
    bound = Normal(y, s).log_prob(x).sum((1, 2, 3)) - z.kl()
    torch.testing.assert_close(
        vae_loss(x, y, z, "l2", w).total, -2 * s**2 * (bound / 256 - constant), rtol=1e-4, atol=1e-5
    )


def test_losses_refuse_what_they_cannot_compare():
    x, y = pair()
    with pytest.raises(UserError, match="unknown loss 'l3'; choose one of"):
        reconstruction(x, y, "l3")
    with pytest.raises(UserError, match="differ in shape"):
        reconstruction(x.expand(-1, 3, -1, -1), y)  # would broadcast in silence


def test_a_few_steps_of_training():
    """It learns to give digits back; and under a heavy KL, to say next to nothing."""
    x, last = load("digits", 8).batch(torch.arange(8))["image"], {}
    for weight in (1e-6, 100.0):
        vae = make_vae().train()
        optimizer, draw = torch.optim.Adam(vae.parameters(), 3e-3), torch.Generator().manual_seed(0)
        for _ in range(30):
            y, z = vae(x, torch.randn(8, 2, 4, 4, generator=draw))
            parts = vae_loss(x, y, z, kl_weight=weight)
            optimizer.zero_grad()
            parts.total.mean().backward()
            optimizer.step()
            last[weight] = [float(part.detach().mean()) for part in parts]
    assert last[1e-6][0] < 0.32 < 0.35 < last[100.0][0]  # from 0.71
    assert last[1e-6][1] > 0.5 and last[100.0][1] < 0.005  # from 0.04


# ---------------------------------------------------------------------------------------------------------- perceptual


def digits(size: int = 32) -> torch.Tensor:
    return load("digits", size).batch(torch.arange(24))["image"]


def classifier_stages() -> list[torch.nn.Module]:
    body = load_digit_classifier().body
    return [body[:3], body[3:6], body[6:10]]  # up to each ReLU


@pytest.mark.parametrize("stages", [lambda: random_stages(1), classifier_stages], ids=["random", "classifier"])
def test_equal_pictures_have_no_perceptual_distance(stages):
    perceptual, x = Perceptual(stages()), digits()
    assert torch.equal(perceptual(x, x.clone()), torch.zeros(24))
    blurred = [perceptual(x, gaussian_blur(x, [9, 9], [s, s])) for s in (0.5, 1.0, 2.0)]
    assert (blurred[0] > 0).all() and (blurred[0] < blurred[1]).all() and (blurred[1] < blurred[2]).all()
    y = digits().roll(1, 0)
    torch.testing.assert_close(perceptual(x, y), perceptual(y, x))


def test_a_blur_is_dear_beside_a_change_of_brightness_of_the_same_error():
    """That is what the term is for: a mean of plausible details is blurred, and a pixel error does not mind."""
    x = digits()
    blurred = gaussian_blur(x, [7, 7], [1.0, 1.0])
    shift = (blurred - x).square().mean((1, 2, 3), keepdim=True).sqrt()
    perceptual = Perceptual(random_stages(1))
    assert perceptual(x, x + shift).max() < 1e-6
    assert perceptual(x, blurred).min() > 0.005


def test_the_random_network_is_always_the_same_and_disturbs_no_other_draw():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first, second = random_stages(3), random_stages(3)
    assert torch.equal(torch.rand(4), expected)
    x, y = pair(3)
    assert torch.equal(Perceptual(first)(x, y), Perceptual(second)(x, y))
    assert first[0][0].weight.sum((2, 3)).abs().max() < 1e-5


@pytest.mark.parametrize("stages", [lambda: random_stages(1), classifier_stages], ids=["random", "classifier"])
def test_the_perceptual_network_is_fixed_and_its_gradient_goes_to_the_reconstruction(stages):
    perceptual, before = Perceptual(stages()).train(), copy.deepcopy(stages())
    x, y = (image.requires_grad_() for image in pair(size=28))
    perceptual(x, y).sum().backward()
    assert x.grad is None and y.grad.abs().max() > 0
    assert [p for p in perceptual.parameters() if p.requires_grad or p.grad is not None] == []
    assert not any(module.training for module in perceptual.modules())
    now = perceptual.stages.state_dict()
    # BatchNorm's averages too
    assert all(torch.equal(value, now[key]) for key, value in torch.nn.ModuleList(before).state_dict().items())


def test_the_perceptual_gradient_is_finite_in_flat_pictures():
    perceptual, y = Perceptual(random_stages(3)), torch.zeros(1, 3, 16, 16, requires_grad=True)
    perceptual(normal(1, 3, 16, 16), y).sum().backward()
    assert y.grad.isfinite().all() and y.grad.abs().max() > 0


# --------------------------------------------------------------------------------------------------------- adversarial


def test_the_hinge_by_hand():
    real, fake = torch.tensor([0.5, 2.0]), torch.tensor([-2.0, 0.25])
    judge = torch.nn.Identity()
    x, y = (t.view(2, 1, 1, 1) for t in (real, fake))
    torch.testing.assert_close(discriminator_loss(judge, x, y), torch.tensor([0.5 / 2 + 0.0, 0.0 + 1.25 / 2]))
    torch.testing.assert_close(adversarial_loss(judge, y), -fake)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_discriminator_looks_at_patches(layers):
    net = PatchDiscriminator(1, 8, layers)
    size = net.smallest
    assert net(torch.zeros(2, 1, size, size)).shape == (2, 1, 1, 1)
    with pytest.raises(UserError, match=f"at least {size} pixels"):
        net(torch.zeros(2, 1, size, size - 1))
    field = 1  # pixels that one answer depends on, by hand: from the last layer back to the image
    for stride in [1, 1] + [2] * layers:
        field = (field - 1) * stride + 4
    x = normal(1, 1, 96, 96).requires_grad_()
    # a norm sees the whole image
    conv_only = torch.nn.Sequential(*[m for m in net.net if not isinstance(m, torch.nn.GroupNorm)])
    y = conv_only(x)
    y[0, 0, y.shape[2] // 2, y.shape[3] // 2].backward()
    assert (x.grad[0, 0].abs().sum(0) > 0).sum() == field


def test_no_image_is_judged_by_its_neighbours():
    net, (x, _) = PatchDiscriminator(1, 8), pair()
    torch.testing.assert_close(net(x)[:1], net(x[:1]))


def test_each_step_moves_its_own_network_only():
    vae, net, x = make_vae(replace(CFG, size=16)).train(), PatchDiscriminator(1, 8), normal(2, 1, 16, 16)
    y, z = vae(x, normal(2, 2, 8, 8))

    discriminator_loss(net, x, y).mean().backward(retain_graph=True)
    assert all(p.grad is None for p in vae.parameters())
    # but for the last bias: where the hinge bends nowhere, what real patches ask of it and what the others ask cancel
    assert all(p.grad.abs().max() > 0 for name, p in net.named_parameters() if name != "net.8.bias")

    net.zero_grad()
    (vae_loss(x, y, z, kl_weight=1.0).total + adversarial_loss(net, y)).mean().backward()
    assert all(p.grad is None for p in net.parameters())
    assert all(p.requires_grad for p in net.parameters())
    # but for the key's bias: softmax does not see what is added to all keys alike
    assert all(
        p.grad is not None and p.grad.abs().max() > 0
        for name, p in vae.named_parameters()
        if not name.endswith("to_k.bias")
    )


def test_the_discriminator_learns_and_the_autoencoder_learns_to_please_it():
    torch.manual_seed(0)
    net, (x, y) = PatchDiscriminator(1, 8), (digits(16), gaussian_blur(digits(16), [5, 5], [1.5, 1.5]))
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        loss = discriminator_loss(net, x, y).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 < losses[0]
    assert net(x).mean() > 0 > net(y).mean()
    before = adversarial_loss(net, y.requires_grad_()).mean()
    before.backward()
    assert adversarial_loss(net, (y - 10 * y.grad).detach()).mean() < before


def test_the_adaptive_weight_makes_both_gradients_equal():
    vae, net, x = make_vae(replace(CFG, size=16)).train(), PatchDiscriminator(1, 8), normal(2, 1, 16, 16)
    y, z = vae(x, normal(2, 2, 8, 8))
    last, others, adversarial = (
        vae.decoder.conv_out.weight,
        vae_loss(x, y, z).total.mean(),
        adversarial_loss(net, y).mean(),
    )
    w = adaptive_weight(others, adversarial, last)
    assert w.shape == () and not w.requires_grad and last.grad is None
    grads = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (others, w * adversarial)]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=0)
    assert adaptive_weight(1e9 * others, adversarial, last) == LARGEST_WEIGHT
    assert adaptive_weight(0 * others, adversarial, last) == 0
    (others + w * adversarial).backward()  # the graph is still there
