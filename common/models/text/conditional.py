"""A U-Net and what conditions it as one trainable module."""

import torch
from torch import Tensor, nn

from common.models.text.encoders import SmallText
from common.models.unet import UNet


class ConditionalUNet(nn.Module):
    """Everything of a text-to-image model that is trained: the U-Net, and its text encoder if that is trained too.

    Parameter names begin with "unet." and "text_encoder.".
    """

    def __init__(self, unet: UNet, text_encoder: SmallText | None = None):
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, x: Tensor, t: Tensor, text: Tensor, extra: Tensor | None = None) -> Tensor:
        """The prediction of the U-Net, (B, C, H, W).

        x      (B, C, H, W) noisy images or latents
        t      (B,) timesteps
        text   (B, M) token ids if there is a text encoder, else (B, M, D) text embeddings
        extra  (B, E, H, W) further input channels, which are not noised: mask and known latents of an inpainting U-Net
        """
        embeddings = self.text_encoder(text) if self.text_encoder else text
        return self.unet(x if extra is None else torch.cat([x, extra], dim=1), t, text=embeddings)
