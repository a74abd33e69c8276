"""A U-Net with one resolution more, for larger images, that begins with what a smaller one has learned.

The new resolution is the highest; the old ones keep the pixels they had, now further apart. At first it only passes every
second pixel down and the answer up, so the grown network answers as the old one does. It has the same timesteps, too:
the variance of the noise stays 1 where pixels are left out, and would fall where they are averaged.
"""

import torch
from torch import nn

from common.models.unet import UNet, UpBlock


def is_grown(net: UNet, other: UNet) -> bool:
    """Whether `net` is `other` with one more resolution on top, as wide as the next and without attention."""
    mine, theirs = vars(net.cfg), vars(other.cfg)
    levels = {"channels", "attention", "heads"}
    alike = all(mine[name] == theirs[name] for name in mine if name not in {*levels, "size"})
    below = all((mine[name] or ())[1:] == (theirs[name] or ()) for name in levels)
    return alike and below and net.cfg.channels[0] == other.cfg.channels[0] and not net.cfg.attention[0]


@torch.no_grad()
def grow(net: UNet, other: UNet) -> UNet:
    """Copy the weights of `other` into `net`, for which `is_grown(net, other)` holds, and let the new resolution pass
    features through. Returns net.

    Where the convolutions at both ends look at single pixels, net(x)[..., ::2, ::2] equals other(x[..., ::2, ::2])
    exactly; otherwise they see nearer neighbours than before, which training corrects.
    """
    for name, child in other.named_children():
        if name != "down_blocks":
            net.get_submodule(name).load_state_dict(child.state_dict(), strict=name != "up_blocks")
    for i, block in enumerate(other.down_blocks):
        net.down_blocks[i + 1].load_state_dict(block.state_dict())
    first, last, before_last = net.down_blocks[0], net.up_blocks[-1], net.up_blocks[-2]
    for resnet in [*first.resnets, *last.resnets]:
        nn.init.zeros_(resnet.conv2.weight)
        nn.init.zeros_(resnet.conv2.bias)
    for convolution in (first.downsamplers[0].conv, before_last.upsamplers[0].conv):
        pass_through(convolution)
    assert isinstance(last, UpBlock)
    for resnet in last.resnets:  # reads what comes from below, followed by a skip connection
        pass_through(resnet.conv_shortcut)
    return net


def pass_through(convolution: nn.Conv2d) -> None:
    """Let a convolution return the pixel at its centre, in its first channels."""
    nn.init.dirac_(convolution.weight)
    nn.init.zeros_(convolution.bias)
