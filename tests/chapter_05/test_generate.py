"""generate.py: pictures as plain diffusers draws them, contact sheets, refusals."""

import diffusers
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from PIL import Image

from common.data import load
from common.io.pixels import to_float
from finetune_diffusers import models
from finetune_diffusers.generation import open_start
from finetune_diffusers.images import contact_sheet, to_pil, to_tensor
from finetune_diffusers.schedulers import make_scheduler
from helpers.finetune_programs import GENERATE, HERE, PROMPT, pixels, refused, silent
from helpers.programs import run_main, run_program


@pytest.fixture(scope="module")
def pipe(model):
    """Whoever changes its scheduler has a copy."""
    return silent(models.open_pipeline(model))


def test_a_picture_is_that_of_plain_diffusers_and_of_its_own_seed(model, pipe, tmp_path, command_line):
    flags = [
        "--model",
        model,
        "--steps",
        3,
        "--scheduler",
        "ddim",
        "--guidance",
        4,
        "--negative",
        "a tail",
        "--device",
        "cpu",
    ]
    code, out, _ = command_line(GENERATE, PROMPT, *flags, "--n", 2, "--seed", 6, "--out", tmp_path / "two")
    assert code == 0 and "ddim" in out
    run_main(GENERATE, PROMPT, *flags, "--n", 1, "--seed", 7, "--out", tmp_path / "one")
    # but for rounding: a batch of two is multiplied in another order than one alone
    assert (pixels(tmp_path / "two" / "seed-7.png") - pixels(tmp_path / "one" / "seed-7.png")).abs().max() <= 2 / 127.5
    plain = StableDiffusionPipeline(
        **pipe.components | {"scheduler": diffusers.DDIMScheduler.from_config(pipe.scheduler.config)},
        requires_safety_checker=False,
    )
    image = silent(plain)(
        PROMPT,
        negative_prompt="a tail",
        num_inference_steps=3,
        guidance_scale=4,
        generator=torch.Generator().manual_seed(7),
    ).images[0]
    assert (pixels(tmp_path / "one" / "seed-7.png") - to_tensor(image)).abs().max() <= 2 / 127.5
    assert (pixels(tmp_path / "two" / "seed-6.png") - pixels(tmp_path / "two" / "seed-7.png")).abs().mean() > 0.05


def test_compare_and_size(model, tmp_path, command_line):
    code, out, err = command_line(
        GENERATE,
        PROMPT,
        "红 zebra",
        "--model",
        model,
        "--compare",
        "ddim,heun",
        "--steps",
        2,
        "--n",
        2,
        "--size",
        "48x32",
        "--low-memory",
        "--device",
        "cpu",
        "--out",
        tmp_path,
    )
    assert code == 0 and "unknown words: zebra" in err
    asked = [line.split()[:3] for line in out.splitlines()[1:5]]
    assert asked == [["ddim", "2", "2"]] * 2 + [["heun", "2", "3"]] * 2
    assert {path.name for path in tmp_path.iterdir()} == {"sheet.png"} | {
        f"{s}-prompt-{k}-seed-{i}.png" for s in ("ddim", "heun") for k in (1, 2) for i in (0, 1)
    }
    assert Image.open(tmp_path / "ddim-prompt-1-seed-0.png").size == (48, 32)


def test_from_a_picture(model, pipe, tmp_path):
    """What plain diffusers makes of it, with the same strength and seed, and the steps that go with them."""
    picture = to_pil(to_float(load("creatures", 64, n=1).pixels[0]))
    picture.resize((70, 66)).save(tmp_path / "creature.png")  # cut to the nearest multiples of 8
    run_main(
        GENERATE,
        PROMPT,
        "--model",
        model,
        "--image",
        tmp_path / "creature.png",
        "--strength",
        0.5,
        "--steps",
        4,
        "--scheduler",
        "ddim",
        "--n",
        1,
        "--seed",
        3,
        "--device",
        "cpu",
        "--out",
        tmp_path,
    )
    ours = Image.open(tmp_path / "seed-3.png")
    plain = StableDiffusionImg2ImgPipeline(
        **pipe.components | {"scheduler": make_scheduler("ddim", dict(pipe.scheduler.config))},
        requires_safety_checker=False,
    )
    start = open_start(tmp_path / "creature.png", None)
    with models.count_calls(plain.unet) as asked:
        theirs = silent(plain)(
            PROMPT,
            image=start,
            strength=0.5,
            num_inference_steps=4,
            guidance_scale=3,
            generator=torch.Generator().manual_seed(3),
        ).images[0]
    assert start.size == ours.size == theirs.size == (72, 64) and asked == [2]
    assert (to_tensor(ours) - to_tensor(theirs)).abs().max() <= 2 / 127.5


def test_a_contact_sheet():
    images = torch.linspace(-1, 1, 6).view(2, 3, 1, 1, 1).expand(2, 3, 3, 8, 8)
    bare = contact_sheet(images, ["", ""], ["", "", ""], height=16, gap=2)
    assert bare.size == (2 + 3 * 18, 2 + 2 * 18)
    assert bare.getpixel((2 + 18 + 8, 2 + 18 + 8)) == tuple([round((float(images[1, 1, 0, 0, 0]) + 1) * 127.5)] * 3)
    named = contact_sheet(images, ["first", "second"], ["a", "b", "a label of several words"], height=16, gap=2)
    assert named.width > bare.width + 20 and named.height > bare.height + 50  # the last label takes several lines
    corner = (named.width - bare.width + 2, named.height - bare.height + 2, named.width, named.height)
    assert named.crop(corner).tobytes() == bare.crop((2, 2, *bare.size)).tobytes()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--scheduler", "magic"], "ddpm, ddim, pndm, euler, euler-a, heun, dpm++"),
        (["--compare", "ddim,"], "unknown scheduler ''"),
        (["--n", 0], "--n"),
        (["--steps", 0], "--steps"),
        (["--guidance", 0.5], "--guidance"),
        (["--strength", 0], "--strength"),
        (["--size", "60"], "multiples of 8"),
        (["--size", "8x100000"], "--size must be at most 4,096 pixels, not 8x100000"),
        (["--size", "axb"], "cannot read --size"),
        (["--seed", -1], "--seed"),
        (["--image", "nowhere.png"], "there is no file"),
        (["--image", "README.md"], "cannot be read as a picture"),
        (["--image", "a.png", "--strength", 0.1, "--steps", 5], "less than one step"),
        (["--device", "cuda:7"], "the device 'cuda:7' cannot be used"),
    ],
)
def test_what_use_refuses(flags, says, model, tmp_path, command_line):
    assert says in refused(command_line(GENERATE, PROMPT, "--model", model, *flags, "--out", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_help_waits_for_nothing_heavy():
    modules = f"import sys; sys.path[:0] = [{HERE!r}, '{HERE}/studies']; import generate, restore, strength, prompt_weighting, train_unconditional, ddpm_package, memory; "
    done = run_program(
        "-c",
        modules
        + "print([m for m in ('torch', 'diffusers', 'transformers', 'accelerate', 'numpy', 'PIL', 'compel') if m in sys.modules])",
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
