"""ControlNet: a copy of the U-Net's first half learns to say where the edges are to be; the U-Net itself stays as it is.

  python 05_finetune_diffusers/controlnet.py                                       trained on the edges of drawn creatures, and measured
  python 05_finetune_diffusers/controlnet.py --data dishes
  python 05_finetune_diffusers/controlnet.py --resume runs/05_finetune_diffusers/controlnet-creatures
  python 05_finetune_diffusers/controlnet.py --use RUN --image sketch.png --prompts "a green creature" "a pink creature"
  python 05_finetune_diffusers/controlnet.py --use RUN                             draw the test edges, and measure again

Zhang et al. 2023, "Adding Conditional Control to Text-to-Image Diffusion Models". What the copy has to say enters the U-Net's second half
through convolutions that are zero in the beginning, so at the first step the model draws exactly as before. The edges have the size of the image
and the U-Net that of the latents, so a small network shrinks them f times: diffusers' default is made for f = 8, and would fail here,
where f = 4. Opened by plain diffusers:

  net = ControlNetModel.from_pretrained("runs/05_finetune_diffusers/controlnet-creatures/controlnet")
  pipe = StableDiffusionControlNetPipeline.from_pretrained(MODEL, controlnet=net)
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from common.cli import run
from common.errors import UserError, explain
from common.io.ranges import Range
from finetune_diffusers.models import OUT
from finetune_diffusers.training.flags import DataFlags, Preset, check_flags, data_name

if TYPE_CHECKING:
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline, UNet2DConditionModel
    from torch import Tensor

    from common.data import Images

SMALL = Preset(steps=900, batch_size=16, lr=1e-3)
LARGE = Preset(steps=10_000, batch_size=4, lr=1e-5)
WIDTHS = {1: (16,), 2: (16, 32), 4: (16, 32, 64), 8: (16, 32, 96, 256)}  # of the network that shrinks the edges f times; the last is diffusers' own


@dataclass(frozen=True)
class Args(DataFlags):
    caption_dropout: float = 0.5
    """Share of captions replaced by the empty one: half, as in the paper, so that the edges alone must say something."""
    threshold: float = 0.2
    """How strong an edge must be: of the gradient a pixel, in pictures from -1 to 1."""
    strength: Annotated[float, Range(0, 10, hint="0 is the model without it")] = 1.0
    """How loud the ControlNet speaks in the pictures: 0 is the model without it."""
    measure: Annotated[int, Range(1, 10_000, hint="those pictures are the validation pictures here")] = 24
    """Pictures drawn before and after the training to measure what it did."""
    prompts: tuple[str, ...] = ()
    """With --image: what to draw along its edges. Else the captions of test images are drawn along theirs."""

    use: Path | None = None
    """Do not train: draw with the ControlNet of this run, or in this folder."""
    image: tuple[Path, ...] = ()
    """With --use: pictures whose edges are wanted; by default the test images'."""
    sheet: Path = OUT / "controlnet.png"
    """Where the sheet of --use goes."""


def main(args: Args) -> None:
    check_flags(args)
    if args.image and not args.use:
        raise UserError("--image goes with --use RUN, the folder of a trained ControlNet")
    if args.prompts and not args.image:
        raise UserError("--prompts goes with --use and --image; without a picture of yours the captions of test images are drawn, along their edges")
    if args.use and args.resume:
        raise UserError("--resume goes on with a training and --use draws without one; give one of them")
    if args.use:
        use(args)
    else:
        train(args)


def train(args: Args) -> None:
    from common.io.files import write_folder
    from finetune_diffusers.data.latent_dataset import encode, load_captioned
    from finetune_diffusers.evaluation.evaluators import COLUMNS, EdgeExam, introduce, show, test_images
    from finetune_diffusers.training.trainer import Tuner, begin, checked, denoising, follow

    args, pipe, accelerator, size = begin(args, "controlnet", data_name(args), SMALL, LARGE)
    images, quiet = load_captioned(args, size, n=args.n), not accelerator.is_main_process
    record, test = checked(args, pipe, images), test_images(args, size)
    data = encode(pipe, images, images.captions, quiet, edges=edges_of(images.pixels, args.threshold))
    net = new_controlnet(pipe.unet, pipe.vae_scale_factor, args.seed)
    if args.checkpointing:
        net.enable_gradient_checkpointing()
    controlled = with_control(pipe, net)
    exam = EdgeExam(args, controlled, test, size, accelerator)
    introduce(args, pipe, images, "a ControlNet beside them is trained", accelerator)

    loss = replace(denoising(pipe, data, args), answer=answer_of(pipe.unet, accelerator))
    tuner = Tuner(net, data, loss, args, accelerator)
    state = follow(tuner, exam.some, exam.prompts[:COLUMNS], record)
    if accelerator.is_main_process:
        with tuner.averaged():
            where = write_folder(args.out / "controlnet", net.save_pretrained)
            exam.sit("without control")
            exam.sit("with control")
        show(args, state, exam, tuner, "controlnet.py", {"ControlNet": where})


# ------------------------------------------------------------------------------------------------------------ the network


def new_controlnet(unet: "UNet2DConditionModel", f: int, seed: int) -> "ControlNetModel":
    """A copy of the U-Net's first half and middle, with zeros where it speaks, and a network that shrinks edges f times."""
    import torch
    from diffusers import ControlNetModel

    if f not in WIDTHS:
        raise UserError(f"the model's autoencoder downsamples images {f} times; a ControlNet can be made for {', '.join(map(str, WIDTHS))}")
    torch.manual_seed(seed)
    try:
        return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=WIDTHS[f])
    except Exception as problem:  # diffusers knows ControlNets for the common kinds of U-Nets only
        raise UserError(f"diffusers cannot make a ControlNet for this U-Net ({explain(problem)})") from problem


def with_control(pipe: "StableDiffusionPipeline", net: "ControlNetModel") -> "StableDiffusionControlNetPipeline":
    """The same networks, and the ControlNet, in the pipeline for it."""
    from diffusers import StableDiffusionControlNetPipeline

    return StableDiffusionControlNetPipeline(**pipe.components | {"controlnet": net.to(pipe.device)}, requires_safety_checker=False)


def answer_of(unet: "UNet2DConditionModel", accelerator):
    """How the loss asks: the ControlNet looks at noisy latents, words and edges, and adds what it has to say to the U-Net's features."""

    def answer(net, x: "Tensor", t: "Tensor", words: "Tensor", batch: "dict[str, Tensor]") -> "Tensor":
        wanted = batch["edges"].float().expand(-1, 3, -1, -1)  # (B, 3, H, W) of zeros and ones
        down, middle = net(x, t, words, controlnet_cond=wanted, return_dict=False)
        with accelerator.autocast():
            return unet(x, t, words, down_block_additional_residuals=down, mid_block_additional_residual=middle, return_dict=False)[0]

    return answer


def edges_of(pixels: "Tensor", threshold: float) -> "Tensor":
    """(N, 3, H, W) uint8 -> (N, 1, H, W) uint8, 0 or 1"""
    import torch

    from common.io.pixels import to_float
    from finetune_diffusers.data.edges import edges

    return torch.cat([edges(to_float(part), threshold).to(torch.uint8) for part in pixels.split(256)])


# --------------------------------------------------------------------------------------------------------------------- use


def open_controlnet(folder: Path, unet: "UNet2DConditionModel", f: int) -> "ControlNetModel":
    """Of a run, or a folder of diffusers, made for this U-Net."""
    from diffusers import ControlNetModel

    from common.io.weight_files import find_weights

    root = folder / "controlnet" if (folder / "controlnet").is_dir() else folder
    if not (root / "config.json").exists():
        raise UserError(f"{folder} holds no ControlNet: {root / 'config.json'} is missing; --use takes the folder of a run of controlnet.py")
    try:
        net = ControlNetModel.from_pretrained(root, variant=find_weights(root).variant)
    except Exception as problem:  # of diffusers, safetensors, torch
        raise UserError(f"the ControlNet in {root} cannot be opened ({explain(problem)})") from problem
    for name in ("block_out_channels", "cross_attention_dim", "in_channels", "layers_per_block"):
        there, here = net.config[name], unet.config[name]
        if (list(there) if isinstance(there, (list, tuple)) else there) != (list(here) if isinstance(here, (list, tuple)) else here):
            raise UserError(f"the ControlNet in {root} does not fit this U-Net: its {name} is {there}, that of the U-Net {here}; give the --model it was trained on")
    shrinks = 2 ** (len(net.config.conditioning_embedding_out_channels) - 1)
    if shrinks != f:
        raise UserError(f"the ControlNet in {root} does not fit this model: it downsamples edges {shrinks} times, and the autoencoder images {f} times")
    return net.requires_grad_(False).eval()


def use(args: Args) -> None:
    from accelerate import Accelerator

    from common.cli import pick_device
    from finetune_diffusers.evaluation.evaluators import EdgeExam, test_images
    from finetune_diffusers.models import native_size
    from finetune_diffusers.training.trainer import open_model

    device = pick_device(args.device)
    pipe = open_model(args.model, device)
    size = args.size or native_size(pipe)
    controlled = with_control(pipe, open_controlnet(args.use, pipe.unet, pipe.vae_scale_factor))
    images = own_images(args, size) if args.image else test_images(args, size)
    exam = EdgeExam(args, controlled, images, size, Accelerator(cpu=device == "cpu"))
    exam.sit("without control")
    exam.sit("with control")
    print(exam.table())
    if not args.image:  # with several prompts for one picture, there may be no other picture to compare with
        print(f"  {exam.marks()}")
    print(exam.sheet(args.sheet))


def own_images(args: Args, size: int) -> "Images":
    """Every --image with every prompt."""
    import torch
    from torchvision.transforms.v2 import functional as tv

    from common.data import Images
    from common.data.sources.decoding import open_rgb
    from common.io.pixels import to_bytes
    from finetune_diffusers.models import to_tensor

    if not args.prompts:
        raise UserError('--prompts is missing: give what to draw along the edges, for instance --prompts "a green creature"')
    pictures = [tv.center_crop(picture, min(picture.size)) for picture in map(open_rgb, args.image)]
    pixels = [to_bytes(to_tensor(picture.resize((size, size)))) for picture in pictures for _ in args.prompts]
    return Images("your pictures", torch.stack(pixels), captions=args.prompts * len(pictures))


if __name__ == "__main__":
    run(main, Args)
