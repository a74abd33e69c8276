"""Our U-Net is the U-Net of `diffusers`: same keys, same shapes, same outputs, over many random configurations."""

import random
from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel

from common.errors import UserError
from common.models.diffusers_configs import unet_from_diffusers, unet_to_diffusers
from common.models.unet import UNet, timestep_embedding, zero_init
from common.models.unet_config import UNetConfig

TEXT_TOKENS = 5


def random_config(seed: int, text: bool) -> UNetConfig:
    """A small U-Net with every switch thrown at random."""
    r = random.Random(seed)
    groups, n = r.choice([1, 2, 4]), r.choice([1, 2, 3])
    channels = tuple(r.choice([8, 16, 24]) for _ in range(n))
    return UNetConfig(
        size=28,
        in_channels=r.choice([1, 3, 4, 9]),
        out_channels=r.choice([1, 3, 4]),
        channels=channels,
        attention=tuple(r.random() < 0.5 for _ in range(n)),
        layers=r.choice([1, 2]),
        head_dim=None if text else r.choice([None, 4, 8]),
        heads=tuple(r.choice([1, 2, 4]) for _ in range(n)) if text else None,
        text_dim=r.choice([6, 12]) if text else None,
        classes=r.choice([None, 10]),
        depth=r.choice([1, 2]) if text else 1,
        linear_projection=text and r.random() < 0.5,
        scale_shift=r.random() < 0.5,
        mid_attention=text or r.random() < 0.7,
        groups=groups,
        eps=r.choice([1e-5, 1e-2]),  # far enough apart that a mix-up shows
        sin_first=r.random() < 0.5,
        freq_shift=r.choice([0, 1]),
        symmetric_padding=r.random() < 0.6,
    )


def build_theirs(config: dict):
    model = UNet2DConditionModel if config["_class_name"] == "UNet2DConditionModel" else UNet2DModel
    return model(**{key: value for key, value in config.items() if not key.startswith("_")}).eval()


def inputs(cfg: UNetConfig, size: tuple[int, int], seed: int) -> dict:
    g = torch.Generator().manual_seed(seed)
    made = {"x": torch.randn(2, cfg.in_channels, *size, generator=g), "t": torch.tensor([3, 871])}
    if cfg.text_dim:
        made["text"] = torch.randn(2, TEXT_TOKENS, cfg.text_dim, generator=g)
    if cfg.classes:
        made["label"] = torch.tensor([0, cfg.classes - 1])
    return made


@torch.no_grad()
def outputs(ours: UNet, theirs, size: tuple[int, int], seed: int = 0):
    given = inputs(ours.cfg, size, seed)
    other = {"encoder_hidden_states": given["text"]} if ours.cfg.text_dim else {}
    if ours.cfg.classes:
        other["class_labels"] = given["label"]
    return ours(**given), theirs(given["x"], given["t"], **other).sample


def agree(ours: UNet, theirs, size: tuple[int, int]) -> None:
    mine, other = outputs(ours, theirs, size)
    assert mine.shape == other.shape
    assert other.std() > 1e-3  # a network that answers zero would agree with anything
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("text", [False, True], ids=["plain", "text"])
@pytest.mark.parametrize("seed", range(20))
def test_same_outputs_with_weights_loaded_both_ways(seed, text):
    torch.manual_seed(seed)
    cfg = random_config(seed, text)
    config = unet_to_diffusers(cfg)
    ours, theirs = UNet(cfg).eval(), build_theirs(config)
    # UNet2DModel itself cannot go back to an odd size; UNet2DConditionModel and ours can
    size = (7, 9) if text else (16, 8)

    ours.load_state_dict(theirs.state_dict(), strict=True)
    agree(ours, theirs, size)

    fresh = UNet(cfg).eval()
    theirs.load_state_dict(fresh.state_dict(), strict=True)
    agree(fresh, theirs, size)

    full = dict(theirs.config) | {"_class_name": config["_class_name"]}  # every setting, as save_pretrained writes it
    for source in (config, full):
        assert unet_from_diffusers(source) == cfg


def test_the_random_configurations_throw_every_switch():
    """Otherwise the test above would be about less than it says."""
    for text in (False, True):
        configs = [random_config(seed, text) for seed in range(20)]
        for name in (
            "channels",
            "attention",
            "layers",
            "classes",
            "scale_shift",
            "groups",
            "eps",
            "sin_first",
            "freq_shift",
            "symmetric_padding",
            "in_channels",
            *(("heads", "depth", "linear_projection") if text else ("head_dim", "mid_attention")),
        ):
            assert len({getattr(cfg, name) for cfg in configs}) > 1, name
        assert any(cfg.in_channels == 9 for cfg in configs)


@pytest.mark.parametrize("text", [False, True], ids=["plain", "text"])
def test_28_pixels_through_an_odd_size(text):
    """MNIST's 28 -> 14 -> 7 and back."""
    torch.manual_seed(0)
    heads = {"text_dim": 6, "heads": (2, 2, 4)} if text else {}
    cfg = UNetConfig(size=28, channels=(8, 8, 16), groups=4, **heads)
    ours = UNet(cfg).eval()
    theirs = build_theirs(unet_to_diffusers(cfg))
    theirs.load_state_dict(ours.state_dict())
    agree(ours, theirs, (28, 28))


@pytest.mark.parametrize("size", [(7, 7), (13, 10)])
def test_odd_sizes_come_back_whole(size):
    cfg = UNetConfig(channels=(8, 8, 16), groups=4, symmetric_padding=False)
    x = torch.randn(1, 1, *size)
    assert UNet(cfg)(x, torch.tensor([5])).shape == x.shape


def test_each_setting_changes_the_output():
    """A switch that did nothing would pass a parity test whose two sides both ignore it."""
    torch.manual_seed(0)
    cfg = UNetConfig(channels=(8, 16), attention=(False, True), groups=4, head_dim=8)
    given = inputs(cfg, (8, 8), 0)
    net = UNet(cfg).eval()
    with torch.no_grad():
        base = net(**given)
        for change in (
            {"sin_first": True},
            {"freq_shift": 1},
            {"head_dim": 4},
            {"eps": 1e-2},
            {"groups": 2},
            {"symmetric_padding": False},
        ):
            other = UNet(replace(cfg, **change)).eval()
            other.load_state_dict(net.state_dict())
            assert not torch.allclose(other(**given), base, atol=1e-6), change
        assert not torch.allclose(net(given["x"], torch.tensor([4, 871]))[0], base[0], atol=1e-6)


# ------------------------------------------------------------------------------------- the geometries of known models

STABLE_DIFFUSION_1 = dict(
    size=64, in_channels=4, out_channels=4, channels=(320, 640, 1280, 1280), attention=(True, True, True, False), layers=2,
    heads=(8, 8, 8, 8), text_dim=768,
)  # fmt: skip
KNOWN = {
    "stable-diffusion-1": STABLE_DIFFUSION_1,
    "stable-diffusion-1-inpainting": STABLE_DIFFUSION_1 | {"in_channels": 9},
    "stable-diffusion-2": STABLE_DIFFUSION_1 | {"heads": (5, 10, 20, 20), "text_dim": 1024, "linear_projection": True},
}


@pytest.mark.parametrize("name", KNOWN)
def test_full_size_stable_diffusion_has_the_same_weights(name):
    cfg = UNetConfig(**KNOWN[name])
    with torch.device("meta"):  # shapes only, no memory
        ours, theirs = UNet(cfg).state_dict(), build_theirs(unet_to_diffusers(cfg)).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}
    if name == "stable-diffusion-1":
        assert sum(value.numel() for value in ours.values()) == 859_520_964  # the figure everyone quotes: 860 M


def test_configuration_file_of_stable_diffusion_1():
    """The settings as Stable Diffusion 1.x ships them: written by an old release, many left to their defaults."""
    config = {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.2.2",
        "act_fn": "silu",
        "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280],
        "center_input_sample": False,
        "cross_attention_dim": 768,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": 4,
        "sample_size": 64,
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    }
    assert unet_from_diffusers(config) == UNetConfig(**STABLE_DIFFUSION_1)


def test_configuration_file_in_the_style_of_the_ddpm_paper():
    """Sine first, a shifted frequency and padding on two sides only: as the paper's own CIFAR-10 weights need them."""
    config = {
        "_class_name": "UNet2DModel",
        "_diffusers_version": "0.0.4",
        "act_fn": "silu",
        "attention_head_dim": None,
        "block_out_channels": [128, 256, 256, 256],
        "center_input_sample": False,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "in_channels": 3,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-06,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 32,
        "time_embedding_type": "positional",
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    }
    cfg = unet_from_diffusers(config)
    assert (cfg.sin_first, cfg.freq_shift, cfg.symmetric_padding, cfg.head_dim, cfg.eps) == (
        True,
        1,
        False,
        None,
        1e-6,
    )
    with torch.device("meta"):
        ours, theirs = UNet(cfg).state_dict(), build_theirs(config).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


# ----------------------------------------------------------------------------------------------- refused, and by name

PLAIN = unet_to_diffusers(UNetConfig(channels=(8, 16), attention=(False, True), groups=4))
TEXT = unet_to_diffusers(UNetConfig(channels=(8, 16), attention=(True, True), groups=4, text_dim=6, heads=(2, 2)))
REFUSED = [
    (PLAIN, "_class_name", "UNet2DConditionalModel"),
    (PLAIN, "time_embedding_type", "fourier"),
    (PLAIN, "block_out_channels", None),
    (PLAIN, "down_block_types", ["DownBlock2D"]),  # one too few
    (PLAIN, "down_block_types", ["SkipDownBlock2D", "AttnSkipDownBlock2D"]),
    (PLAIN, "up_block_types", ["AttnUpBlock2D", "ResnetUpsampleBlock2D"]),
    (PLAIN, "up_block_types", ["UpBlock2D", "AttnUpBlock2D"]),  # attention not where it was on the way down
    (PLAIN, "mid_block_type", None),
    (PLAIN, "class_embed_type", "timestep"),
    (PLAIN, "act_fn", "gelu"),
    (PLAIN, "attn_norm_num_groups", 2),
    (PLAIN, "attention_head_dim", 5),  # does not divide 16: diffusers would build narrower attention
    (PLAIN, "mid_block_scale_factor", 0.5),
    (PLAIN, "downsample_padding", 2),
    (PLAIN, "downsample_type", "resnet"),
    (PLAIN, "upsample_type", "resnet"),
    (PLAIN, "resnet_time_scale_shift", "spatial"),
    (PLAIN, "center_input_sample", True),
    (PLAIN, "layers_per_block", [1, 2]),
    (PLAIN, "a_setting_of_the_future", 1),
    (TEXT, "attention_head_dim", [3, 2]),  # 3 heads do not divide 8 channels
    (TEXT, "class_embed_type", "projection"),
    (TEXT, "addition_embed_type", "text_time"),
    (TEXT, "cross_attention_dim", [6, 6]),
    (TEXT, "encoder_hid_dim", 12),
    (TEXT, "only_cross_attention", True),
    (TEXT, "dual_cross_attention", True),
    (TEXT, "transformer_layers_per_block", [1, 2]),
    (TEXT, "reverse_transformer_layers_per_block", [1, 2]),
    (TEXT, "layers_per_block", [1, 2]),
    (TEXT, "mid_block_type", "UNetMidBlock2DSimpleCrossAttn"),
    (TEXT, "conv_in_kernel", 1),
    (TEXT, "time_embedding_dim", 64),
    (TEXT, "time_cond_proj_dim", 64),
    (TEXT, "resnet_skip_time_act", True),
    (TEXT, "attention_type", "gated"),
    (TEXT, "num_attention_heads", 4),
    (TEXT, "timestep_post_act", "silu"),
]


@pytest.mark.parametrize(("config", "key", "value"), REFUSED, ids=[f"{key}={value}" for _, key, value in REFUSED])
def test_what_we_cannot_honour_is_refused_by_name(config, key, value):
    unet_from_diffusers(config)  # well without the change
    with pytest.raises(UserError, match=rf"\b{key}\b"):
        unet_from_diffusers(config | {key: value})


def test_attention_with_its_own_norm_is_refused():
    """With scale_shift, attn_norm_num_groups = None means no norm at all before the middle's attention."""
    config = PLAIN | {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": None}
    with pytest.raises(UserError, match="attn_norm_num_groups"):
        unet_from_diffusers(config)
    assert not unet_from_diffusers(config | {"add_attention": False}).mid_attention  # then there is nothing to norm


def test_no_setting_of_diffusers_is_unknown_to_us():
    """Every default of both models is either translated or held fixed: nothing passes unseen."""
    for model, class_name in ((UNet2DModel, "UNet2DModel"), (UNet2DConditionModel, "UNet2DConditionModel")):
        with torch.device("meta"):
            config = dict(model().config) | {"_class_name": class_name}
        unet_from_diffusers(config)


# -------------------------------------------------------------------------------------------------------- small parts


def test_timestep_embedding_is_sine_and_cosine_of_known_frequencies():
    """Vaswani et al. 2017, section 3.5, by hand."""
    t, dim = 17.0, 6
    angles = [t * 10_000 ** (-k / 3) for k in range(3)]
    expected = torch.tensor([angles]).double()
    got = timestep_embedding(torch.tensor([t]), dim).double()
    torch.testing.assert_close(got, torch.cat([expected.cos(), expected.sin()], 1), rtol=0, atol=1e-5)
    first = timestep_embedding(torch.tensor([t]), dim, sin_first=True).double()
    torch.testing.assert_close(first, torch.cat([expected.sin(), expected.cos()], 1), rtol=0, atol=1e-5)


def test_zero_init_begins_at_zero_and_still_learns():
    torch.manual_seed(0)
    net = zero_init(UNet(UNetConfig(channels=(8, 16), attention=(False, True), groups=4, scale_shift=True)))
    given = inputs(net.cfg, (8, 8), 0)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    assert net(**given).abs().max() == 0
    for _ in range(3):
        (net(**given) - 1).square().mean().backward()
        optimizer.step()
    # after the outermost zeros have moved, gradients reach every weight
    assert [name for name, p in net.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []
