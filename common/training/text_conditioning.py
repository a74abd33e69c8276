"""What the trainings of text-to-image models share:
a text encoder, captions as token ids or embeddings, validation images.

encoder = make_text_encoder(captions, dim=96)                     a transformer that is trained along, or ...
encoder = make_text_encoder(captions, clip=clip, cache=folder)    ... a frozen CLIP whose embeddings are computed once
data = Captioned(images, captions, encoder)                       batch(indices) -> {"image": ..., "text": ...}
net = ConditionalUNet(unet, trainable(encoder))
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from common import viz
from common.io.state_dict import count_parameters
from common.models.model_folder import start_from
from common.models.pipeline import SamplingConfig, TextToImagePipeline
from common.models.text.cached import CachedTextEncoder
from common.models.text.conditional import ConditionalUNet
from common.models.text.encoders import CLIPTextEncoder, SmallText, small_text
from common.models.text_to_image_folder import save_pipeline
from common.models.unet import UNet, zero_init
from common.models.unet_config import UNetConfig
from common.training.flags import TextToImageFlags
from common.training.loop import Data, Loss, State
from common.training.run import loss_curve_and_model, run_training

# At the U-Net's learning rate, the embeddings of all tokens soon become alike (chapter 2's RESULTS.md).
LR_SCALES = {"text_encoder.": 0.1}

Encoder = SmallText | CachedTextEncoder


def open_clip(text: str, device: str) -> CLIPTextEncoder | None:
    """The frozen text encoder of the flag --text; None for "small", the transformer that is trained along."""
    return None if text == "small" else CLIPTextEncoder(text).to(device)


def make_text_encoder(
    captions: Sequence[str],
    dim: int,
    start: TextToImagePipeline | None = None,
    clip: CLIPTextEncoder | None = None,
    cache: Path = Path("runs/text_cache"),
) -> Encoder:
    """The CLIP if there is one; else the trainable encoder of the model to start from, with its tokens;
    else a new one of this width.
    """
    if clip:
        return CachedTextEncoder(clip, captions, cache)
    if start and isinstance(start.text_encoder, SmallText):
        return start.text_encoder
    return small_text(captions, dim=dim, heads=max(1, dim // 32))


def lr_scales(encoder: Encoder) -> dict[str, float]:
    """The factors of the learning rate, for TrainConfig: the text encoder's is smaller, if it is trained along."""
    return LR_SCALES if isinstance(encoder, SmallText) else {}


def trainable(encoder: Encoder) -> SmallText | None:
    """The encoder if it is trained along with the U-Net."""
    return encoder if isinstance(encoder, SmallText) else None


def make_network(
    cfg: UNetConfig, encoder: Encoder, start: TextToImagePipeline | None = None, folder: Path | None = None
) -> ConditionalUNet:
    """An untrained U-Net, or one with the weights of `start`, which was opened from `folder`;
    with the encoder if that is trained.
    """
    unet = zero_init(UNet(cfg))
    if start and folder:
        start_from(unet, start.unet, folder)
    return ConditionalUNet(unet, trainable(encoder))


class Captioned:
    """Images or latents with the text of their captions, as the training loop reads them."""

    def __init__(self, data: Data, captions: Sequence[str], encoder: Encoder):
        self.data, self.captions, self.encoder = data, captions, encoder
        # (N, M), computed once
        self.token_ids = encoder.tokenizer(captions) if isinstance(encoder, SmallText) else None

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """The batch of the data, and "text": (B, M) token ids for a trained encoder, (B, M,
        D) embeddings of a frozen one
        """
        some = (
            self.token_ids[indices]
            if self.token_ids is not None
            else self.encoder([self.captions[i] for i in indices.tolist()])
        )
        return self.data.batch(indices) | {"text": some}


def empty_text(encoder: Encoder) -> Tensor:
    """The empty caption as a batch holds it: (M,) token ids or (M, D) embeddings."""
    return (encoder.tokenizer([""]) if isinstance(encoder, SmallText) else encoder([""]))[0]


def introduction(data: str, net: ConditionalUNet, text: str, device: str, prompts: Sequence[str]) -> str:
    """What is trained on what, and which column of the sample pictures belongs to which
    prompt. text: the flag --text
    """
    unet, encoder = (count_parameters(part) if part else 0 for part in (net.unet, net.text_encoder))
    read_by = f"read by a transformer with {encoder:,}" if encoder else f"read by the frozen {text}"
    first = f"{data}; U-Net with {unet:,} weights, captions {read_by}, on {device}"
    return "\n".join([first, *(f"  picture {i}: {prompt or '(no words)'}" for i, prompt in enumerate(prompts, 1))])


def train_text_to_image(
    program: str,  # its path, such as 02_cfg_pokemon/train.py; sample.py stands beside it
    flags: TextToImageFlags,  # settled
    net: ConditionalUNet,
    data: Captioned,
    loss: Loss,
    accelerator: Accelerator,
    record: dict[str, Any],  # of the data, for data.json
    what: str,  # the data in words
    pipeline_of: Callable[[State], TextToImagePipeline],  # with the averaged weights
    height: int,  # pixels of the sample pictures
    save_start: Callable[[Path], object] | None,  # writes what the run begins with into a folder
) -> None:
    """run_training() with the fixed prompts as sample pictures, and the pipeline as the model that is saved."""
    config = SamplingConfig(flags.guidance, sampler=flags.sampler, seed=flags.seed)

    def draw(state: State, path: Path) -> Path:
        return draw_validation(pipeline_of(state), flags.prompts, config, path, height)

    def finish(state: State) -> dict[str, object]:
        sample = (
            f'python {Path(program).with_name("sample.py").as_posix()} "{flags.prompts[0]}" --model {flags.run_dir}'
        )
        pictures = draw(state, flags.run_dir / "samples.png")
        return {"plain, guided": pictures, **loss_curve_and_model(flags.run_dir), "more pictures": sample}

    run_training(
        program,
        flags,
        net,
        data,
        loss,
        accelerator,
        record,
        introduction=introduction(what, net, flags.text, str(accelerator.device), flags.prompts),
        save=lambda state, folder: save_pipeline(folder, pipeline_of(state)),
        draw=draw,
        finish=finish,
        save_start=save_start,
        lr_scales=lr_scales(data.encoder),
    )


def draw_validation(
    pipeline: TextToImagePipeline, prompts: Sequence[str], config: SamplingConfig, path: Path, height: int
) -> Path:
    """The fixed prompts without guidance (w = 1) above, with guidance below, from the same noise.
    height: pixels of the picture
    """
    rows = [pipeline.txt2img(prompts, replace(config, guidance_scale=w)) for w in (1.0, config.guidance_scale)]
    return viz.save_picture(viz.grid(torch.cat(rows), len(prompts), height), path)
