"""What the programs of this chapter share: opening a model, choosing a scheduler, seeds, contact sheets, and honest refusals.

    pipe = open_pipeline("04_latent_sd/pretrained")                   a folder, a run folder, a file, or an id of the Hugging Face hub
    use_scheduler(pipe, "dpm++")
    images = pipe("a red creature", generator=generators(seed=0, n=1), output_type="pt").images
    sheet(images[None] * 2 - 1, rows=[""], columns=["seed 0"]).save("red.png")
"""

import re
import shutil
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from common.errors import UserError, enough_memory, explain
from common.io.config_values import check_values
from common.io.files import exchange, partial, read_json, write_folder
from common.io.ranges import PIXELS, Range
from common.io.weight_files import variant_in
from common.models.pipeline_folder import INDEX, find_pipeline, quiet

if TYPE_CHECKING:  # torch and diffusers wait until something is really done
    import torch
    from diffusers import DiffusionPipeline
    from PIL import Image
    from torch import Tensor

PRETRAINED = Path(__file__).parent.parent / "04_latent_sd" / "pretrained"  # the course's own small Stable Diffusion
OUT = Path("runs/05_finetune_diffusers")

Task = Literal["text", "image", "inpaint"]  # what a picture is made from: words, words and a picture, words and a picture with a mask


# ------------------------------------------------------------------------------------------------------------- opening it


def find_model(name: str | Path) -> Path:
    """The folder of a pipeline. name: a local folder, a run folder, a checkpoint in one file, or a hub id."""
    if not Path(name).exists() and Path(name).resolve() == PRETRAINED.resolve():
        raise UserError(f"the course's own model is not in {PRETRAINED}; make it with 04_latent_sd/train.py, or name another with --model")
    return find_pipeline(name)


def open_pipeline(name: str | Path = PRETRAINED, task: Task = "text", device: str = "cpu", dtype: "torch.dtype | None" = None) -> "DiffusionPipeline":
    """A pipeline for the task, in evaluation mode on the device.

    dtype  of the weights; None is float32 on a CPU (half precision is many times slower there) and half precision on a GPU
    """
    folder = find_model(name)
    check_task(folder, task)
    import torch

    half = torch.bfloat16 if device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    dtype = dtype or (half if device.startswith("cuda") else torch.float32)
    quiet()
    from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting, AutoPipelineForText2Image

    auto = {"text": AutoPipelineForText2Image, "image": AutoPipelineForImage2Image, "inpaint": AutoPipelineForInpainting}[task]
    try:
        with no_notes(), enough_memory(device, "a smaller model, or --device cpu"):
            pipe = auto.from_pretrained(folder, torch_dtype=dtype, variant=variant_in(folder), **left_out(folder)).to(device)
    except UserError:
        raise
    except Exception as problem:  # each library has its own
        raise UserError(f"the pipeline in {folder} cannot be opened ({explain(problem)})") from problem
    return pipe


def left_out(folder: Path) -> dict[str, None]:
    """Text encoders that the pipeline was saved without, such as the third of Stable Diffusion 3, which diffusers must be told."""
    return {name: None for name, kind in read_json(folder / INDEX).items() if name.startswith(("text_encoder", "tokenizer")) and kind == [None, None]}


def check_task(folder: Path, task: Task) -> None:
    """Refuse a model that cannot do the task, and say which program can."""
    kind = str(read_json(folder / INDEX).get("_class_name"))
    if not (folder / "text_encoder").is_dir():
        raise UserError(f"{folder} holds a {kind} without a text encoder, so it takes no prompt; train_unconditional.py continues unconditional models")
    if not (folder / "unet").is_dir() or not (folder / "vae").is_dir():
        return  # not of Stable Diffusion's build: what it can do, its pipeline knows
    channels, latents = (counted(folder / part / "config.json", key) for part, key in (("unet", "in_channels"), ("vae", "latent_channels")))
    if task != "inpaint" and channels == 2 * latents + 1:
        raise UserError(
            f"{folder} is an inpainting model: its U-Net has {channels} input channels ({latents} of the noisy picture, 1 of the mask, "
            f"{latents} of the masked picture), so it needs a picture and a mask; use restore.py, or a model with {latents} channels here"
        )
    if channels not in (latents, 2 * latents + 1):
        raise UserError(f"the U-Net in {folder} has {channels} input channels; the programs of this chapter know {latents} and {2 * latents + 1}")


def counted(path: Path, key: str) -> int:
    """A number of channels in a config.json; 4, as in diffusers, where it is left out."""
    config = read_json(path)
    check_values(config, {key: Annotated[int, Range(1, 65_536)]}, str(path))
    return config.get(key, 4)


def as_task(pipe: "DiffusionPipeline", task: Task) -> "DiffusionPipeline":
    """The same networks in a pipeline for another task; no weight is copied."""
    from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting, AutoPipelineForText2Image

    auto = {"text": AutoPipelineForText2Image, "image": AutoPipelineForImage2Image, "inpaint": AutoPipelineForInpainting}[task]
    with no_notes():
        return auto.from_pipe(pipe)


@contextmanager
def no_notes() -> Iterator[None]:
    """Without the libraries' notes about their own future."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def remarks(pipe: "DiffusionPipeline", prompt: str) -> list[str]:
    """What whoever typed this prompt should know: it is empty, cut, or holds words that the model has never seen."""
    from tokenizers import Tokenizer as Backend

    from common.models.text.tokenizer import Tokenizer

    words = pipe.tokenizer
    copy = Backend.from_str(words.backend_tokenizer.to_str())  # ours changes its padding
    return Tokenizer(copy, words.model_max_length, words.pad_token).remarks(prompt)


# ------------------------------------------------------------------------------------------------------------- schedulers

# Names as people say them -> class of diffusers, and what it is told beside the configuration that the model came with.
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("DDPMScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpm++-karras": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}),
    "dpm++-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
}
FLOW_SETTINGS = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
FLOW: dict[str, tuple[str, dict[str, Any]]] = {  # for models of flow matching, such as Stable Diffusion 3
    "euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", **FLOW_SETTINGS}),
    "unipc": ("UniPCMultistepScheduler", FLOW_SETTINGS),
}


def make_scheduler(name: str, config: dict[str, Any]):
    """A scheduler by name for a model that was trained as `config` (pipe.scheduler.config) says.

    What makes one name differ from another is left out of the configuration first: it would stay for the next one, so that after
    dpm++-karras every scheduler had the sigmas of Karras.
    """
    check_schedulers([name])
    import diffusers

    kind, settings = SCHEDULERS[name]
    if config.get("prediction_type") == "flow_prediction" or ("shift" in config and "beta_schedule" not in config):
        if name not in FLOW:
            raise UserError(f"the model was trained for flow matching, where scheduler '{name}' is not defined; choose one of {', '.join(FLOW)}")
        kind, settings = FLOW[name][0], FLOW[name][1] | ({"flow_shift": config["shift"]} if FLOW[name][1] else {})
    marks = {key for _, others in SCHEDULERS.values() for key in others}
    with no_notes():
        return getattr(diffusers, kind).from_config({key: value for key, value in config.items() if key not in marks}, **settings)


def use_scheduler(pipe: "DiffusionPipeline", name: str) -> None:
    """Exchange the scheduler: it is how one samples, not what was learned, so any of them goes with any model of one kind."""
    pipe.scheduler = make_scheduler(name, dict(pipe.scheduler.config))


def check_schedulers(names: Sequence[str]) -> None:
    """Refuse unknown names before a model is opened."""
    for name in names:
        if name not in SCHEDULERS:
            raise UserError(f"unknown scheduler '{name}'; choose one of {', '.join(SCHEDULERS)}")


@contextmanager
def fits(scheduler: str) -> Iterator[None]:
    """Turn the failure of a scheduler that counts its steps wrongly into a sentence.

    With the spacing of Karras et al. (2022) and a cosine schedule, whose last steps are very steep, the first two moments are rounded to
    the same timestep; diffusers (0.42) then begins at the second and runs out of steps at the end.
    """
    try:
        yield
    except IndexError as problem:
        if Path(traceback.extract_tb(problem.__traceback__)[-1].filename).parent.name != "schedulers":
            raise
        raise UserError(
            f"scheduler '{scheduler}' cannot take so many steps on this model's noise schedule (diffusers: {explain(problem)}); "
            "give other --steps, or another scheduler, for instance dpm++"
        ) from problem


def to_images(result: "Tensor", scheduler: str) -> "Tensor":
    """What a pipeline gives for output_type="pt", (N, 3, H, W) in [0, 1] -> [-1, 1], float32 on the CPU; NaN is refused.

    Euler ancestral with 3 steps of a cosine schedule is one that gives NaN: it takes the root of a difference that rounding has made negative.
    """
    images = result.float().cpu() * 2 - 1
    if not bool(images.isfinite().all()):
        raise UserError(f"the sampled pictures hold NaN or infinity (scheduler '{scheduler}'); give other --steps, or another scheduler")
    return images


@contextmanager
def calls(network: "torch.nn.Module") -> Iterator[list[int]]:
    """Within this context, counts how often the network is asked: what a sampler costs. Yields a list with one number."""
    count = [0]

    def add(*_) -> None:
        count[0] += 1

    hook = network.register_forward_hook(add)
    try:
        yield count
    finally:
        hook.remove()


# ------------------------------------------------------------------------------------------------- seeds, sizes, pictures


def generators(seed: int, n: int) -> "list[torch.Generator]":
    """One generator a picture, with seeds seed, seed + 1, ...: each picture comes out the same whatever is drawn beside it.

    On the CPU, so that a seed means the same picture on every device.
    """
    import torch

    return [torch.Generator("cpu").manual_seed(seed + i) for i in range(n)]


def network_of(pipe: "DiffusionPipeline") -> "torch.nn.Module":
    """The network that is asked at every step: a U-Net, or the transformer of newer models."""
    return pipe.unet if getattr(pipe, "unet", None) is not None else pipe.transformer


def need_unet(pipe: "DiffusionPipeline", model: str) -> None:
    """Refuse newer models, whose network is a transformer, where a program looks into a U-Net."""
    if getattr(pipe, "unet", None) is None:
        raise UserError(f"{model} holds a {type(pipe).__name__}, whose network is a transformer; this program knows models with a U-Net, and generate.py draws with both")


def native_size(pipe: "DiffusionPipeline") -> int:
    """Pixels a side of the images that the model was trained on."""
    size = network_of(pipe).config.sample_size
    return (size if isinstance(size, int) else size[0]) * pipe.vae_scale_factor


def read_size(text: str) -> tuple[int, int]:
    """'64' or '96x64' (width x height) -> (width, height); multiples of 8, as diffusers wants them."""
    parts = text.lower().split("x")
    if not 1 <= len(parts) <= 2 or not all(part.isdecimal() for part in parts):
        raise UserError(f"cannot read --size {text}; write 64, or 96x64 for width x height")
    width, height = int(parts[0]), int(parts[-1])
    if max(width, height) not in PIXELS:
        raise UserError(f"--size must be {PIXELS.refusal(max(width, height))}, not {text}")
    if min(width, height) < 8 or width % 8 or height % 8:
        raise UserError(f"--size must be multiples of 8 pixels, not {text}")
    return width, height


def to_tensor(picture: "Image.Image") -> "Tensor":
    """PIL -> (C, H, W) float32 in [-1, 1]"""
    import numpy as np
    import torch

    pixels = torch.from_numpy(np.array(picture))
    return pixels.reshape(picture.height, picture.width, -1).permute(2, 0, 1).float() / 127.5 - 1


def to_picture(image: "Tensor") -> "Image.Image":
    """(C, H, W) in [-1, 1] -> PIL"""
    from PIL import Image

    from common.io.pixels import to_bytes

    pixels = to_bytes(image.cpu()).permute(1, 2, 0).numpy()
    return Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)


def sheet(images: "Tensor", rows: Sequence[str], columns: Sequence[str], height: int = 128, gap: int = 4) -> "Image.Image":
    """A contact sheet with its labels, on white.

    images        (R, C, 3, H, W) in [-1, 1]
    rows, columns R and C labels; a sheet whose labels are all "" has no margin for them
    height        small pictures are enlarged by a whole factor to about as many pixels
    """
    from PIL import Image, ImageDraw, ImageFont

    factor = max(1, round(height / images.shape[-2]))
    h, w = images.shape[-2] * factor, images.shape[-1] * factor
    font = ImageFont.load_default(size=14)
    left = gap + max((round(font.getlength(label)) for label in rows), default=0) + (2 * gap if any(rows) else 0)
    lines = [wrap(label, font, w) for label in columns]
    top = gap + 18 * max((len(label) for label in lines if any(label)), default=0)
    picture = Image.new("RGB", (left + len(columns) * (w + gap), top + len(rows) * (h + gap)), "white")
    draw = ImageDraw.Draw(picture)
    for j, label in enumerate(lines):
        draw.multiline_text((left + j * (w + gap) + w / 2, top - 3), "\n".join(label), "black", font, anchor="md", align="center", spacing=2)
    for i, label in enumerate(rows):
        draw.text((left - 2 * gap, top + i * (h + gap) + h / 2), label, "black", font, anchor="rm")
        for j in range(len(columns)):
            cell = to_picture(images[i, j]).convert("RGB").resize((w, h), Image.Resampling.NEAREST)
            picture.paste(cell, (left + j * (w + gap), top + i * (h + gap)))
    return picture


def wrap(label: str, font, width: int) -> list[str]:
    """Break a label at its spaces so that each line fits over a picture (a long word may stick out)."""
    lines = [""]
    for word in label.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


# -------------------------------------------------------------------------------------- the checkpoints of own trainings

KEEP = 2  # of each run


class Progress:
    """How far a training has come. accelerate keeps it with the rest."""

    def __init__(self):
        self.step, self.seconds = 0, 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.seconds = state["step"], state["seconds"]


def save_state(accelerator, run: Path, step: int) -> None:
    """Everything that accelerate has prepared or registered, as checkpoints/step-00000500: whole, or not at all. Older ones go.

    All processes call it, for each writes its own random states; the main process makes room before, and puts the folder in its place.
    """
    folder = run / "checkpoints" / f"step-{step:08d}"
    if accelerator.num_processes == 1:
        write_folder(folder, accelerator.save_state)
    else:
        if accelerator.is_main_process:
            shutil.rmtree(partial(folder), ignore_errors=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(partial(folder))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            exchange(partial(folder), folder)
    if accelerator.is_main_process:
        for old in states(run)[:-KEEP]:
            shutil.rmtree(old)


def load_state(accelerator, run: Path) -> None:
    """Back to the newest checkpoint of a run, if it has one."""
    kept = states(run)
    if not kept:
        return
    try:
        accelerator.load_state(kept[-1])
    except UserError:
        raise
    except Exception as problem:  # of accelerate, torch, safetensors, each their own
        hint = f"delete it and resume from {kept[-2].name}" if len(kept) > 1 else "there is no earlier one"
        raise UserError(f"the checkpoint {kept[-1]} is damaged ({explain(problem)}); {hint}") from problem


def states(run: Path) -> list[Path]:
    """All whole checkpoints of a run, checkpoints/step-00000500, oldest first."""
    return sorted(p for p in (run / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d{8}", p.name))
