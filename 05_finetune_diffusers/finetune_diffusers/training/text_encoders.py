"""Trains text encoders together with the U-Net.

Then a caption's embedding changes from step to step and cannot be computed in advance, so batches hold tokens. Text
encoders and U-Net become one network with one forward pass: accelerate prepares it as one, and several processes
exchange its gradients once.
"""

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from finetune_diffusers.data.latent_dataset import zeros_for_empty


class TextAndUNet(nn.Module):
    """A pipeline's text encoders and its U-Net: predicts from noisy latents and tokens."""

    def __init__(self, pipe: StableDiffusionPipeline):
        super().__init__()
        self.unet, self.text_encoder = pipe.unet, pipe.text_encoder
        self.text_encoder_2 = getattr(pipe, "text_encoder_2", None)
        empty = None
        if self.text_encoder_2 is not None and zeros_for_empty(pipe):
            empty = pipe.tokenizer("", padding="max_length", max_length=pipe.tokenizer.model_max_length).input_ids
        self.register_buffer("empty", None if empty is None else torch.tensor(empty), persistent=False)

    def forward(self, x: Tensor, t: Tensor, ids: Tensor, time_ids: Tensor | None = None) -> Tensor:
        """x (B, C, h, w), t (B,), ids (B, encoders, M), time_ids (B, 6) of XL only -> (B, C, h, w)"""
        if self.text_encoder_2 is None:
            text = self.text_encoder(ids[:, 0]).last_hidden_state  # (B, M, D)
            return self.unet(x, t, text, return_dict=False)[0]
        first = self.text_encoder(ids[:, 0], output_hidden_states=True)
        second = self.text_encoder_2(ids[:, 1], output_hidden_states=True)
        # XL reads both before their last layers
        text = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)  # (B, M, D1 + D2)
        pooled = second.text_embeds  # (B, P)
        if self.empty is not None:  # an empty caption counts as zeros, as in the pipeline
            said = (ids[:, 0] != self.empty).any(1).to(text.dtype)  # (B,)
            text, pooled = text * said[:, None, None], pooled * said[:, None]
        conditions = {"text_embeds": pooled, "time_ids": time_ids}
        return self.unet(x, t, text, added_cond_kwargs=conditions, return_dict=False)[0]


def predict_with_text(net: nn.Module, x: Tensor, t: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """How the loss calls a TextAndUNet."""
    return net(x, t, batch["ids"], batch.get("time_ids"))
