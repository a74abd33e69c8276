"""Tiny pipelines in the geometry of published families, with random weights: what people name with --model."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from common.models.text.encoders import save_text, small_text
from common.models.text.tokenizer import train_tokenizer
from helpers.tiny_pipeline import WORDS, write_tiny_pipeline


def write_tiny_xl(folder: Path) -> Path:
    """Stable Diffusion XL: two text encoders, a pooled vector and the size of the picture as further conditioning."""
    torch.manual_seed(0)
    save_text(folder, small_text(2 * WORDS, dim=32, layers=1, heads=2, length=64))
    words = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=37,
        projection_dim=32,
        num_attention_heads=4,
        num_hidden_layers=2,
        max_position_embeddings=64,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=80,
        cross_attention_dim=64,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        sample_size=32,
    )
    StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=words,
        tokenizer_2=words,
        unet=unet,
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    ).save_pretrained(folder)
    return folder


def make_tiny_xl(words: Path) -> StableDiffusionXLPipeline:
    """The geometry of Stable Diffusion XL, some channels wide: three levels, the first one without attention,
    heads 64 wide, two text encoders of which the second one projects its pooled output.
    words: a folder with a tokenizer in it
    """
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(words / "tokenizer")
    texts = [
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=256,
            projection_dim=64,
            num_hidden_layers=2,
            num_attention_heads=1,
            max_position_embeddings=16,
            hidden_act=activation,
            bos_token_id=0,
            eos_token_id=len(tokenizer) - 1,
        )
        for activation in ("quick_gelu", "gelu")
    ]
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(64, 64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=[1, 1, 2],
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=[1, 1, 2],
        projection_class_embeddings_input_dim=6 * 8 + 64,
        cross_attention_dim=128,
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 64, 64),
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=2,
        sample_size=64,
        scaling_factor=0.13025,
    )
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(texts[0]).eval(),
        text_encoder_2=CLIPTextModelWithProjection(texts[1]).eval(),
        tokenizer=tokenizer,
        tokenizer_2=CLIPTokenizer.from_pretrained(
            words / "tokenizer",
            pad_token=tokenizer.convert_ids_to_tokens(0),  # "!" in the published one
        ),
        unet=unet,
        scheduler=EulerDiscreteScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1
        ),
    )


def write_tiny_ddpm(folder: Path) -> Path:
    """A diffusion model of pixels without text."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder)
    return folder


def write_tiny_flow(folder: Path) -> Path:
    """Stable Diffusion 3: a transformer, trained for flow matching.
    Its third text encoder is left out, as in its smaller downloads.
    """
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

    torch.manual_seed(0)
    write_tiny_pipeline(folder)
    words = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=37,
        projection_dim=32,
        num_attention_heads=4,
        num_hidden_layers=2,
        max_position_embeddings=77,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )
    words.model_max_length = 77
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=64,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        out_channels=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        sample_size=32,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.06,
    )
    StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=CLIPTextModelWithProjection(text),
        tokenizer=words,
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer_2=words,
        text_encoder_3=None,
        tokenizer_3=None,
    ).save_pretrained(folder / "flow")
    return folder / "flow"


def make_tiny_sd(
    words: Path, second: bool = False, channels: int = 4, prediction: str = "epsilon"
) -> StableDiffusionPipeline:
    """The geometry of Stable Diffusion 1.5 or 2.1, some channels wide, with random weights.
    words: a folder with a tokenizer in it
    """
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(words / "tokenizer")
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=1,
            max_position_embeddings=16,
            hidden_act="gelu" if second else "quick_gelu",
            bos_token_id=0,
            eos_token_id=1,
        )
    )
    widths = (64, 128, 128, 128) if second else (32, 64, 64, 64)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        block_out_channels=widths,
        cross_attention_dim=64,
        attention_head_dim=[width // 64 for width in widths] if second else 8,
        use_linear_projection=second,
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 64, 64),
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=2,
        sample_size=64,
    )
    scheduler = PNDMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        skip_prk_steps=True,
        steps_offset=1,
        prediction_type=prediction,
    )
    kind = StableDiffusionPipeline if channels == 4 else StableDiffusionInpaintPipeline
    return kind(vae, text.eval(), tokenizer, unet, scheduler, None, None, requires_safety_checker=False)


def write_tiny_sd(folder: Path, second: bool = False, suspicious: bool = False) -> Path:
    """A folder of Stable Diffusion 1.5 (which predicts noise) or 2.1 (which predicts v), of a few random weights.
    suspicious: with a safety checker that takes offence at every picture
    """
    train_tokenizer(2 * WORDS, 16).save(folder / "tokenizer")
    pipe = make_tiny_sd(folder, second, prediction="v_prediction" if second else "epsilon")
    if suspicious:
        pipe.register_modules(safety_checker=suspicious_checker(), feature_extractor=small_pictures())
        pipe.register_to_config(requires_safety_checker=True)
    pipe.save_pretrained(folder)
    return folder


def suspicious_checker() -> StableDiffusionSafetyChecker:
    """Finds in every picture what it looks for."""
    sides = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=sides, vision_config=sides | {"image_size": 32, "patch_size": 16}, projection_dim=8
    )
    checker = StableDiffusionSafetyChecker(config)
    checker.concept_embeds_weights.data.fill_(-2.0)  # of the cosines, none of which is lower
    return checker


def small_pictures() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
