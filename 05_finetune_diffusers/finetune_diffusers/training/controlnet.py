"""ControlNet (Zhang et al. 2023): a copy of the U-Net's first half learns where edges should be;
the U-Net itself stays as it is.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv

from common.cli import pick_device
from common.data import Images
from common.data.sources.decoding import open_rgb
from common.errors import UserError, explain
from common.io import hub
from common.io.files import write_folder
from common.io.pixels import to_bytes
from common.io.state_dict import fingerprint
from common.io.weight_files import choose, chosen_files, find_weights
from finetune_diffusers.data.control_images import conditioning_images, control_images, looks_drawn
from finetune_diffusers.data.latent_dataset import encode, load_captioned
from finetune_diffusers.data.views import mirrored
from finetune_diffusers.evaluation.evaluators import EdgeEvaluator, ValidationSampler, test_images
from finetune_diffusers.images import to_tensor
from finetune_diffusers.models import ONE_ENCODER, default_guidance, native_size, open_for_training
from finetune_diffusers.training.flags import ControlNetFlags, SizePresets, data_name
from finetune_diffusers.training.loop.trainer import Tuner
from finetune_diffusers.training.loss import Predict, latent_denoising
from finetune_diffusers.training.tuning import checked_record, introduce, setup, train_and_report

# of the network that shrinks edges f times; the last is diffusers' own
WIDTHS = {1: (16,), 2: (16, 32), 4: (16, 32, 64), 8: (16, 32, 96, 256)}
# settings that a ControlNet shares with its U-Net
SAME_BUILD = ("block_out_channels", "cross_attention_dim", "in_channels", "layers_per_block")


def train_controlnet(args: ControlNetFlags, presets: SizePresets) -> None:
    """Train a ControlNet on the edges of the data, and save it in a folder of its own."""
    if args.control == "lines":
        raise UserError(
            "--control lines is for drawings with --use; a training takes edges, canny or conditioning_image"
        )
    run = setup(args, f"controlnet-{data_name(args.data)}", presets, ONE_ENCODER)
    args, pipe = run.args, run.pipe
    images, test = load_captioned(args, run.size, n=args.n), test_images(args, run.size)
    given, test_given = control_of(args, images, run.size), control_of(args, test, run.size)
    if args.random_flip:
        images, given = mirrored(images), torch.cat([given, given.flip(-1)])
    record = checked_record(run, images) | {"control": fingerprint(given)}
    data = encode(pipe, images, images.captions, run.quiet, control=given)
    net = new_controlnet(pipe.unet, pipe.vae_scale_factor, args.seed)
    if args.checkpointing:
        net.enable_gradient_checkpointing()
    sampler = ValidationSampler(with_controlnet(pipe, net), args, run.size, run.accelerator)
    wanted = edges_of(test.pixels, args.threshold).float()
    evaluator = EdgeEvaluator(sampler, test, args.threshold, args.strength, as_float(test_given), wanted)
    introduce(run, images, "a ControlNet beside them is trained")
    loss = latent_denoising(pipe, data, args, predict_with_controlnet(pipe.unet, run.accelerator))
    trainer = Tuner(net, data, loss, args, run.accelerator)

    def save() -> dict[str, Path]:
        return {"ControlNet": write_folder(args.out / "controlnet", net.save_pretrained)}

    stages = (EdgeEvaluator.WITHOUT, EdgeEvaluator.WITH)
    train_and_report(run, trainer, evaluator, record, save, stages, "controlnet.py", "ControlNet")


def control_of(args: ControlNetFlags, images: Images, size: int) -> Tensor:
    """What the ControlNet is given with each image: (N, 1, S, S) of 0 and 1, or (N, 3, S, S) of 0 to 255, uint8."""
    if args.control == "conditioning_image":
        return conditioning_images(images, args.data, size)
    return control_images(args.control, images.pixels, args.threshold)


def as_float(control: Tensor) -> Tensor:
    """The same in [0, 1]: lines are 0 and 1 already, pictures 0 to 255."""
    return control.float() if control.shape[1] == 1 else control.float() / 255


# --------------------------------------------------------------------------------------------------------- the network


def new_controlnet(unet: UNet2DConditionModel, f: int, seed: int) -> ControlNetModel:
    """A copy of the U-Net's first half and middle, with zero convolutions at its outputs,
    and a network that shrinks edges f times.
    """
    if f not in WIDTHS:
        raise UserError(
            f"the model's autoencoder downsamples images {f} times; a ControlNet can be made for {', '.join(map(str, WIDTHS))}"
        )
    torch.manual_seed(seed)
    try:
        return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=WIDTHS[f])
    except Exception as problem:  # diffusers knows ControlNets for the common kinds of U-Nets only
        raise UserError(f"diffusers cannot make a ControlNet for this U-Net ({explain(problem)})") from problem


def with_controlnet(pipe: StableDiffusionPipeline, net: ControlNetModel) -> StableDiffusionControlNetPipeline:
    """The same networks, and the ControlNet, in the pipeline for it."""
    return StableDiffusionControlNetPipeline(
        **pipe.components | {"controlnet": net.to(pipe.device)}, requires_safety_checker=False
    )


def predict_with_controlnet(unet: UNet2DConditionModel, accelerator: Accelerator) -> Predict:
    """How the loss predicts: the ControlNet takes noisy latents, text and what it is given, edges for instance,
    and adds residuals to the features of the frozen U-Net.
    """

    def predict(net: nn.Module, x: Tensor, t: Tensor, batch: dict[str, Tensor]) -> Tensor:
        control = as_float(batch["control"] if "control" in batch else batch["edges"]).expand(-1, 3, -1, -1)
        down, middle = net(x, t, batch["text"], controlnet_cond=control, return_dict=False)  # control: (B, 3, H, W)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        with accelerator.autocast():
            return unet(x, t, batch["text"], **residuals, return_dict=False)[0]

    return predict


def edges_of(pixels: Tensor, threshold: float) -> Tensor:
    """(N, 3, H, W) uint8 -> (N, 1, H, W) uint8, 0 or 1"""
    return control_images("edges", pixels, threshold)


# ----------------------------------------------------------------------------------------------------------------- use


def draw_with_controlnet(args: ControlNetFlags, name: str) -> None:
    """Draw along edges or lines, without and with the ControlNet, and measure how well they are followed.
    name: a run, a folder, or a hub id of a ControlNet
    """
    device = pick_device(args.device)
    folder = find_controlnet(name)
    pipe = open_for_training(args.model, device, revision=args.revision, variant=args.variant)
    size = args.size or native_size(pipe)
    controlled = with_controlnet(pipe, open_controlnet(folder, pipe.unet, pipe.vae_scale_factor))
    images = own_images(args.image, args.prompts, size) if args.image else test_images(args, size)
    if args.image and args.control == "conditioning_image":  # the pictures are what the ControlNet is to be given
        given, wanted = images.pixels, edges_of(images.pixels, args.threshold)
    else:
        if args.image and args.control != "lines" and bool(looks_drawn(images.pixels).any()):
            print(
                "note: a drawing's edges are two for every line; if it is to be followed as it is drawn, give --control lines"
            )
        given = control_of(args, images, size)
        wanted = given if args.control == "lines" else edges_of(images.pixels, args.threshold)
    settings = args if args.guidance is not None else replace(args, guidance=default_guidance(pipe))
    sampler = ValidationSampler(controlled, settings, size, Accelerator(cpu=device == "cpu"))
    evaluator = EdgeEvaluator(sampler, images, args.threshold, args.strength, as_float(given), wanted.float())
    evaluator.evaluate(EdgeEvaluator.WITHOUT)
    evaluator.evaluate(EdgeEvaluator.WITH)
    print(evaluator.table())
    print(evaluator.contact_sheet(args.sheet))


def find_controlnet(name: str) -> Path:
    """The folder of a ControlNet: a run's, one of diffusers, or that of a hub id, downloaded where it is missing."""
    local = Path(name).expanduser()
    if local.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        if not local.is_dir():
            raise UserError(f"there is no folder {name}; --use takes a run of controlnet.py, a folder, or a hub id")
        return local
    folder = hub.cached(name, "config.json")
    if folder is None or not choose(file.name for file in folder.iterdir()):
        advice = f"give a local folder with --use, or {hub.MIRROR}"
        folder = hub.download(name, lambda files, _: ["config.json", *chosen_files(files)], advice)
    return folder


def open_controlnet(folder: Path, unet: UNet2DConditionModel, f: int) -> ControlNetModel:
    """The ControlNet of a run, or of a folder of diffusers; refused if it was made for another U-Net."""
    root = folder / "controlnet" if (folder / "controlnet").is_dir() else folder
    if not (root / "config.json").exists():
        raise UserError(
            f"{folder} holds no ControlNet: {root / 'config.json'} is missing; --use takes the folder of a run of controlnet.py"
        )
    try:
        net = ControlNetModel.from_pretrained(root, variant=find_weights(root).variant)
    except Exception as problem:  # diffusers, safetensors and torch raise their own exceptions
        raise UserError(f"the ControlNet in {root} cannot be opened ({explain(problem)})") from problem
    for name in SAME_BUILD:
        there, here = (list(v) if isinstance(v := part.config[name], tuple) else v for part in (net, unet))
        if there != here:
            raise UserError(
                f"the ControlNet in {root} does not fit this U-Net: its {name} is {there}, that of the U-Net {here}; give the --model it was trained on"
            )
    shrinks = 2 ** (len(net.config.conditioning_embedding_out_channels) - 1)
    if shrinks != f:
        raise UserError(
            f"the ControlNet in {root} does not fit this model: it downsamples edges {shrinks} times, and the autoencoder images {f} times"
        )
    return net.requires_grad_(False).eval()


def own_images(paths: Sequence[Path], prompts: Sequence[str], size: int) -> Images:
    """Every picture with every prompt."""
    if not prompts:
        raise UserError(
            '--prompts is missing: give what to draw along the edges, for instance --prompts "a green creature"'
        )
    pictures = [tv.center_crop(picture, min(picture.size)) for picture in map(open_rgb, paths)]
    pixels = [to_bytes(to_tensor(picture.resize((size, size)))) for picture in pictures for _ in prompts]
    return Images("your pictures", torch.stack(pixels), captions=tuple(prompts) * len(pictures))
