"""Growing a U-Net by one resolution for larger images."""

from dataclasses import replace

import pytest
import torch

from common.models.model_folder import grow, is_grown, start_from
from common.models.unet import UNet
from common.models.unet_config import text_unet


def small(*widths: int) -> UNet:
    torch.manual_seed(len(widths))
    return UNet(text_unet(16, 4, widths, 12))


def look_at_single_pixels(net: UNet) -> None:
    """Only the centres of the kernels at both ends stay."""
    for convolution in (net.conv_in, net.conv_out):
        centre = convolution.weight.data[..., 1, 1].clone()
        convolution.weight.data.zero_()
        convolution.weight.data[..., 1, 1] = centre


@torch.no_grad()
def test_a_grown_network_answers_as_the_one_it_grew_from():
    other, net = small(8, 16), small(8, 8, 16)
    look_at_single_pixels(other)
    x, t, text = torch.randn(2, 4, 16, 16), torch.tensor([3, 700]), torch.randn(2, 5, 12)
    grow(net, other)
    assert other(x, t, text).std() > 0.05
    torch.testing.assert_close(net(x, t, text)[..., ::2, ::2], other(x[..., ::2, ::2], t, text), rtol=1e-5, atol=1e-6)


def test_every_weight_of_the_old_network_is_in_the_grown_one():
    other, net = small(8, 16), small(8, 8, 16)
    grow(net, other)
    grown = {tuple(p.shape) + (float(p.detach().sum()),) for p in net.parameters()}
    assert {tuple(p.shape) + (float(p.detach().sum()),) for p in other.parameters()} <= grown


def test_all_of_a_grown_network_is_trained():
    """Branches of zeros get gradients, as in any network that zero_init has prepared."""
    net = grow(small(8, 8, 16), small(8, 16))
    net(torch.randn(2, 4, 16, 16), torch.tensor([3, 700]), torch.randn(2, 5, 12)).square().mean().backward()
    still = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    behind_zeros = ("norm1.", "conv1.", "time_emb_proj.", "norm2.")  # their turn comes when conv2 is no longer zero
    assert all(name.split("resnets.0.")[-1].startswith(behind_zeros) or ".resnets.1." in name for name in still)
    assert all(name.startswith(("down_blocks.0.", "up_blocks.2.")) for name in still)


def test_start_from_grows_where_one_resolution_is_missing(tmp_path):
    other, net = small(8, 16), small(8, 8, 16)
    start_from(net, other, tmp_path)
    assert torch.equal(net.down_blocks[1].resnets[0].conv1.weight, other.down_blocks[0].resnets[0].conv1.weight)


@pytest.mark.parametrize(
    ("widths", "smaller"),
    [((16, 8, 16), (8, 16)), ((8, 8, 16), (8, 8, 16)), ((8, 8, 8, 16), (8, 16)), ((8, 8, 24), (8, 16))],
)
def test_other_builds_are_no_growth(widths, smaller):
    assert not is_grown(small(*widths), small(*smaller))


def test_a_new_resolution_with_attention_is_no_growth():
    net = small(8, 8, 16)
    assert is_grown(net, small(8, 16))
    net.cfg = replace(net.cfg, attention=(True, True, True))
    assert not is_grown(net, small(8, 16))
