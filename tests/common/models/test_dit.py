"""Our DiT is the DiTTransformer2DModel of `diffusers`: same keys, same shapes, same outputs."""

import json
import random

import pytest
import torch
from diffusers import DiTTransformer2DModel
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from torch import nn

from common.diffusion.denoiser import Denoiser
from common.diffusion.losses import diffusion_loss
from common.diffusion.sampler_spec import Sampler
from common.diffusion.schedules import make_schedule
from common.errors import UserError
from common.models.diffusers_configs import dit_from_diffusers, dit_to_diffusers
from common.models.dit import DiT, DiTConfig, positions
from common.models.model_folder import Model, load_model, save_model, start_from
from common.models.text_to_image_folder import open_pipeline
from common.models.unet import UNet
from common.models.unet_config import UNetConfig

SMALL = DiTConfig(size=8, patch=2, dim=16, depth=2, heads=2)


def random_config(seed: int) -> DiTConfig:
    r = random.Random(seed)
    heads, patch = r.choice([1, 2, 4]), r.choice([1, 2, 4])
    return DiTConfig(
        size=patch * r.choice([2, 3, 5]),
        in_channels=r.choice([1, 3, 4]),
        out_channels=r.choice([1, 3, 8]),
        patch=patch,
        dim=heads * r.choice([4, 8, 12]),
        depth=r.choice([1, 2, 3]),
        heads=heads,
        classes=r.choice([None, 10]),
        eps=r.choice([1e-5, 1e-2]),  # far enough apart that a mix-up shows
    )


def build_theirs(config: dict) -> nn.Module:
    return DiTTransformer2DModel(**{key: value for key, value in config.items() if not key.startswith("_")}).eval()


def randomised(net: nn.Module, seed: int = 0, std: float = 0.1) -> nn.Module:
    """With random weights everywhere: new ones close every gate."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=std, generator=generator)
    return net


@pytest.mark.parametrize("seed", range(12))
def test_equal_to_diffusers(seed):
    cfg = random_config(seed)
    theirs = randomised(build_theirs(dit_to_diffusers(cfg)), seed)
    ours = DiT(cfg).eval()
    ours.load_state_dict(theirs.state_dict())  # strict: every key, and no other
    generator = torch.Generator().manual_seed(seed)
    null = cfg.classes or 0
    t, label = torch.tensor([0, 17, 999]), torch.tensor([0, null, max(0, null - 1)])
    for size in (cfg.size, 2 * cfg.size):  # positions of other sizes are stretched, as theirs are
        x = torch.randn(3, cfg.in_channels, size, size, generator=generator)
        with torch.no_grad():
            expected, got = theirs(x, t, label).sample, ours(x, t, label=label)
            without = theirs(x, t, torch.full((3,), null)).sample
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(ours(x, t), without, rtol=1e-5, atol=1e-5)
        assert got.std() > 0.01  # the test looks at something


def test_positions_of_images_that_are_not_square():
    expected = get_2d_sincos_pos_embed(12, (3, 5), base_size=7)
    torch.testing.assert_close(positions(3, 5, 12, 7, torch.device("cpu")).double(), expected, rtol=0, atol=1e-5)
    assert DiT(SMALL)(torch.zeros(1, 1, 6, 10), torch.tensor([3])).shape == (1, 1, 6, 10)


def test_a_token_is_a_patch_and_comes_back_to_its_place():
    """With the identity as embedding and as last layer, the image comes back."""
    net = DiT(DiTConfig(size=4, patch=2, dim=4, depth=0, heads=1))
    h = net.pos_embed.proj.weight.data.copy_(torch.eye(4).view(4, 1, 2, 2))
    x = torch.arange(16.0).view(1, 1, 4, 4)
    tokens = nn.functional.conv2d(x, h, stride=2).flatten(2).transpose(1, 2)  # (1, 4, 4)
    assert tokens[0, 1].tolist() == [2, 3, 6, 7]  # the patch at the top right, row by row
    assert torch.equal(net.unpatchify(tokens, 2, 2), x)


def test_it_begins_with_closed_gates_and_zeros_and_still_learns():
    """adaLN-Zero: each block is the identity, the prediction is 0, and all weights get gradients after one step."""
    torch.manual_seed(0)
    net, x, t = DiT(SMALL), torch.randn(2, 1, 8, 8), torch.tensor([3, 700])
    h = torch.randn(2, 16, 16)
    label = torch.zeros(2, dtype=torch.long)
    assert all(torch.equal(block(h, t, label), h) for block in net.transformer_blocks)
    assert not net(x, t).any()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (net(x, t) - x).square().mean().backward()
        optimizer.step()
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters())


def test_it_takes_the_place_of_the_unet():
    """The same loss, denoiser and sampler; a text is not looked at."""
    net, schedule = (
        randomised(DiT(DiTConfig(size=8, patch=4, dim=16, depth=1, heads=2, classes=3))),
        make_schedule("cosine"),
    )
    x, u, label = torch.randn(2, 1, 8, 8), torch.tensor([0.2, 0.9]), torch.tensor([0, 2])
    assert diffusion_loss(net, schedule, "v", x, u, torch.randn_like(x), label=label).isfinite().all()
    *_, last = Sampler.parse("ddim:3").run(Denoiser(net, "v", label=label), schedule, (2, 1, 8, 8), 0)
    assert last.x.shape == (2, 1, 8, 8) and last.x.isfinite().all()
    t = torch.tensor([5.0, 9.0])
    assert torch.equal(net(x, t, torch.ones(2, 5, 6), label), net(x, t, label=label))
    assert not torch.equal(net(x, t, label=label), net(x, t))


@pytest.mark.parametrize("classes", [None, 10])
def test_a_folder_opens_here_and_in_diffusers(tmp_path, classes):
    cfg = DiTConfig(size=8, patch=2, dim=16, depth=2, heads=2, out_channels=2, classes=classes)
    net, schedule = randomised(DiT(cfg)).eval(), make_schedule("cosine")
    save_model(tmp_path, Model(net, schedule, "v", True))
    assert not (tmp_path / "model_index.json").exists()  # diffusers has no pipeline for a DiT of pixels
    loaded = load_model(tmp_path)
    theirs = DiTTransformer2DModel.from_pretrained(tmp_path / "transformer")
    x, t, label = torch.randn(2, 1, 8, 8), torch.tensor([1, 900]), torch.tensor([0, classes or 0])
    with torch.no_grad():
        expected = net(x, t, label=label)
        assert loaded.net.cfg == cfg and torch.equal(loaded.net(x, t, label=label), expected)
        torch.testing.assert_close(theirs(x, t, label).sample, expected, rtol=1e-5, atol=1e-5)
    assert (loaded.schedule.name, loaded.prediction, loaded.clip_x0) == (schedule.name, "v", True)


def test_a_published_config_is_understood():
    """facebook/DiT-XL-2-256 is written for the class that diffusers used before."""
    config = {
        "_class_name": "Transformer2DModel", "_diffusers_version": "0.12.0.dev0", "activation_fn": "gelu-approximate", "attention_bias": True,
        "attention_head_dim": 72, "cross_attention_dim": None, "dropout": 0.0, "in_channels": 4, "norm_elementwise_affine": False,
        "norm_num_groups": 32, "norm_type": "ada_norm_zero", "num_attention_heads": 16, "num_embeds_ada_norm": 1000, "num_layers": 28,
        "num_vector_embeds": None, "only_cross_attention": False, "out_channels": 8, "patch_size": 2, "sample_size": 32,
        "upcast_attention": False, "use_linear_projection": False,
    }  # fmt: skip
    cfg = dit_from_diffusers(config)
    assert cfg == DiTConfig(32, 4, 8, patch=2, dim=1152, depth=28, heads=16, classes=1000)
    with torch.device("meta"):
        ours, theirs = DiT(cfg).state_dict(), build_theirs(dit_to_diffusers(cfg)).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_class_name", "PixArtTransformer2DModel"),
        ("activation_fn", "geglu"),
        ("attention_bias", False),
        ("norm_type", "layer_norm"),
        ("norm_elementwise_affine", True),
        ("cross_attention_dim", 768),
        ("patch_size", 0),
        ("num_layers", "many"),
        ("a_setting_of_the_future", 1),
    ],
)
def test_what_we_cannot_honour_is_refused_by_name(key, value):
    config = dit_to_diffusers(SMALL)
    dit_from_diffusers(config)  # well without the change
    with pytest.raises(UserError, match=rf"\b{key}\b"):
        dit_from_diffusers(config | {key: value})


def test_no_setting_of_diffusers_is_unknown_to_us():
    with torch.device("meta"):
        dit_from_diffusers(dict(DiTTransformer2DModel(num_layers=1).config) | {"_class_name": "DiTTransformer2DModel"})


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"size": 28, "patch": 5}, "patches of 5"), ({"dim": 18}, "multiple of 4"), ({"heads": 3}, "the 3 heads")],
)
def test_sizes_that_do_not_fit_are_refused(settings, says):
    with pytest.raises(UserError, match=says):
        DiTConfig(**settings)


def test_weights_of_another_architecture_are_refused(tmp_path):
    save_model(tmp_path, Model(DiT(SMALL), make_schedule("cosine"), "v", True))
    path = tmp_path / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_layers": 3}))
    with pytest.raises(UserError, match="transformer_blocks.2.* is missing"):
        load_model(tmp_path)


def test_where_a_unet_is_needed_a_dit_is_refused(tmp_path):
    save_model(tmp_path, Model(DiT(SMALL), make_schedule("cosine"), "v", True))
    net = UNet(UNetConfig(size=8, channels=(8,), attention=(False,), groups=4))
    with pytest.raises(UserError, match="is of another build .channels = None against"):
        start_from(net, load_model(tmp_path).net, tmp_path)
    with pytest.raises(UserError, match="is a Diffusion Transformer, where a U-Net was expected"):
        open_pipeline(tmp_path)
