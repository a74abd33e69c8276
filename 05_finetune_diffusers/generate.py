"""Use any text-to-image model: words to pictures, pictures to pictures, any scheduler, and schedulers side by side.

  python 05_finetune_diffusers/generate.py "a red creature with wings" --n 8 --seed 7
  python 05_finetune_diffusers/generate.py "番茄炒蛋" --negative "a table" --guidance 6 --size 96x64
  python 05_finetune_diffusers/generate.py "a blue creature" --compare ddim,dpm++,euler-a --steps 20
  python 05_finetune_diffusers/generate.py "a green creature with horns" --image drawing.png --strength 0.6
  python 05_finetune_diffusers/generate.py "a red fox, oil painting" --model stable-diffusion-v1-5/stable-diffusion-v1-5 --device cuda

Without --model it is the small Stable Diffusion of chapter 4. Writes every picture as a PNG of its own, and a contact sheet.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from common.cli import pick_device, run
from common.errors import UserError, enough_memory
from common.io.ranges import SAMPLER_STEPS, Range
from finetune_diffusers.models import OUT, PRETRAINED, check_schedulers, read_size


@dataclass(frozen=True)
class Args:
    prompts: Positional[tuple[str, ...]] = ("a red creature with wings", "a blue creature with horns")
    """What to draw; each prompt gets n pictures."""
    model: str = str(PRETRAINED)
    """The folder of a pipeline, a run folder, a checkpoint in one file, or a hub id."""
    image: Path | None = None
    """Begin from this picture instead of from noise."""
    strength: float = 0.7
    """With --image: how far it is taken back to noise, above 0 to 1; 1 forgets it."""
    scheduler: str = "dpm++"
    """ddpm, ddim, pndm, euler, euler-a, heun, dpm++, dpm++-karras, dpm++-sde, unipc, deis, lms."""
    compare: str | None = None
    """Instead of one scheduler, several: ddim,dpm++,euler-a draws a row for each, from the same noise."""
    steps: Annotated[int, SAMPLER_STEPS] = 25
    """Steps of the scheduler, from noise to picture."""
    guidance: Annotated[float, Range(1, 1000, hint="1 is off")] = 3.0
    """Guidance scale w, 1 or more; 1 is off."""
    negative: str = ""
    """What is not wanted: it takes the place of the empty prompt."""
    n: int = 4
    """Pictures of each prompt."""
    size: str | None = None
    """Pixels, 64 or 96x64 (width x height), multiples of 8; by default what the model was trained on."""
    seed: int = 0
    """Of the first picture; the next has seed + 1, and so on. A picture depends on its own seed alone."""
    low_memory: bool = False
    """Attention and decoding in slices, and on a GPU only the network that is at work: slower, in much less memory."""
    out: Path = OUT / "use"
    """The folder that the pictures go to."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


def check(args: Args) -> tuple[str, ...]:
    """Refuse what cannot be, before anything is loaded. Returns the schedulers to use."""
    if not args.prompts:
        raise UserError('give a prompt, for instance "a red creature with wings"; "" samples without a prompt')
    if args.image and int(args.steps * args.strength) < 1:
        raise UserError(f"--strength {args.strength:g} of {args.steps} steps is less than one step; give more --steps, or more --strength")
    schedulers = tuple(args.compare.split(",")) if args.compare is not None else (args.scheduler,)
    check_schedulers(schedulers)
    return schedulers


def main(args: Args) -> None:
    schedulers = check(args)
    size = read_size(args.size) if args.size else None
    device = pick_device(args.device)

    import sys
    import time

    import torch

    from common.viz import save_picture
    from finetune_diffusers.models import calls, fits, network_of, open_pipeline, remarks, sheet, to_picture, use_scheduler

    picture = begin_with(args.image, size) if args.image else None
    pipe = open_pipeline(args.model, "image" if args.image else "text", device)
    if args.low_memory:
        in_slices(pipe, device)
    pipe.set_progress_bar_config(desc="drawing", leave=False, mininterval=0.5)
    for prompt in (*args.prompts, *([args.negative] if args.negative else [])):
        for sentence in remarks(pipe, prompt):
            print(f"note: {sentence}", file=sys.stderr)

    rows, labels = [], []
    print(f"{'scheduler':14}{'steps':>7}{'network asked':>15}{'seconds a picture':>19}   prompt")
    for scheduler in schedulers:
        use_scheduler(pipe, scheduler)
        for k, prompt in enumerate(args.prompts, 1):
            began = time.perf_counter()
            with calls(network_of(pipe)) as asked, fits(scheduler), enough_memory(device, "--n or --size, or give --low-memory"):
                rows.append(draw(pipe, prompt, scheduler, args, size, picture))
            seconds = (time.perf_counter() - began) / args.n
            print(f"{scheduler:14}{args.steps:>7}{asked[0]:>15}{seconds:>19.2f}   {prompt or '(no words)'}")
            labels.append(" ".join([scheduler] * (len(schedulers) > 1) + [f"prompt {k}"] * (len(args.prompts) > 1)))
            for i, image in enumerate(rows[-1]):
                name = "-".join([*labels[-1].split(), f"seed-{args.seed + i}"])
                save_picture(to_picture(image), args.out / f"{name}.png")
    columns = [f"seed {args.seed + i}" for i in range(args.n)]
    print(save_picture(sheet(torch.stack(rows), labels, columns), args.out / "sheet.png"))


def begin_with(path: Path, size: tuple[int, int] | None):
    """The picture of --image, cut to --size, or to the nearest multiples of 8."""
    from PIL import Image, ImageOps

    from common.data.sources.decoding import open_rgb

    picture = open_rgb(path)
    size = size or tuple(max(8, 8 * round(side / 8)) for side in picture.size)
    return ImageOps.fit(picture, size, Image.Resampling.LANCZOS)


def in_slices(pipe, device: str) -> None:
    """Less memory for more time: nothing here changes the picture beyond rounding."""
    pipe.enable_attention_slicing(1)  # one head at a time
    pipe.vae.enable_slicing()
    if device.startswith("cuda"):
        pipe.enable_model_cpu_offload()


def draw(pipe, prompt: str, scheduler: str, args: Args, size: tuple[int, int] | None, picture):
    """n pictures of one prompt: (n, 3, H, W) in [-1, 1] on the CPU."""
    from finetune_diffusers.models import generators, native_size, to_images

    wish = {
        "prompt": [prompt] * args.n,
        "negative_prompt": [args.negative] * args.n,
        "num_inference_steps": args.steps,
        "guidance_scale": args.guidance,
        "generator": generators(args.seed, args.n),
        "output_type": "pt",  # tensors in [0, 1]
    }
    if picture is not None:
        wish |= {"image": [picture] * args.n, "strength": args.strength}
    else:
        width, height = size or [native_size(pipe)] * 2
        wish |= {"width": width, "height": height}
    return to_images(pipe(**wish).images, scheduler)


if __name__ == "__main__":
    run(main, Args)
