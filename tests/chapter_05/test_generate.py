"""generate.py: pictures as plain diffusers draws them, contact sheets, refusals."""

import diffusers
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from PIL import Image

from common.data import load
from common.data.sources.decoding import open_rgb
from common.io.pixels import to_float
from finetune_diffusers import models
from finetune_diffusers.generation import cut_to
from finetune_diffusers.images import contact_sheet, generators, to_pil, to_tensor
from finetune_diffusers.schedulers import make_scheduler
from helpers.finetune_programs import GENERATE, HERE, PROMPT, pixels, refused, silent
from helpers.programs import run_main, run_program
from helpers.tiny_families import write_tiny_sd, write_tiny_xl


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
    start = cut_to(open_rgb(tmp_path / "creature.png"), None, 64)
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


def test_a_contact_sheet_writes_chinese_prompts():
    """Each character is drawn: another one gives another picture, and a long prompt breaks between characters."""
    images = torch.zeros(1, 1, 3, 32, 32)
    one, other, long = (
        contact_sheet(images, [""], [label], height=64) for label in ("一碗米饭", "一碗米粥", "一只红色圆圆的小怪兽")
    )
    assert one.size == other.size and one.tobytes() != other.tobytes()
    assert long.width == one.width and long.height > one.height + 10


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--scheduler", "magic"], "own, ddpm, ddim, pndm, euler, euler-karras, euler-a, heun, dpm++"),
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
    modules = f"import sys; sys.path[:0] = [{HERE!r}, '{HERE}/studies']; import generate, restore, strength, prompt_weighting, train_unconditional, ddpm_package, runs; "
    done = run_program(
        "-c",
        modules
        + "print([m for m in ('torch', 'diffusers', 'transformers', 'accelerate', 'numpy', 'PIL', 'compel') if m in sys.modules])",
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


# ------------------------------------------------------------------------------------------------- published families


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    place = tmp_path_factory.mktemp("published")
    return {"sd": write_tiny_sd(place / "sd", suspicious=True), "xl": write_tiny_xl(place / "xl")}


@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_a_model_keeps_its_own_scheduler_guidance_and_empty_prompt(published, kind, tmp_path, monkeypatch):
    """Without flags it is the picture of plain diffusers. XL takes zeros, not the embedding of "", where no negative
    prompt is given."""
    monkeypatch.setattr("finetune_diffusers.models.SMALL", 0)  # the tiny models stand for large ones
    run_main(
        GENERATE, PROMPT, "--model", published[kind], "--n", 1, "--steps", 3, "--device", "cpu", "--out", tmp_path
    )
    plain = silent(
        models.AUTO["text"].from_pretrained(published[kind], **({"safety_checker": None} if kind == "sd" else {}))
    )
    expected = plain(PROMPT, num_inference_steps=3, generator=generators(0, 1), output_type="pt").images[0] * 2 - 1
    if kind == "sd":
        assert models.default_guidance(plain) == 7.5 and type(plain.scheduler).__name__ == "PNDMScheduler"
        assert (pixels(tmp_path / "seed-0.png") == -1).all()  # blackened: see the next test
        return
    assert models.default_guidance(plain) == 5.0 and type(plain.scheduler).__name__ == "EulerDiscreteScheduler"
    assert (pixels(tmp_path / "seed-0.png") - expected).abs().max() <= 2 / 127.5


def test_pictures_that_a_safety_checker_blackens_are_reported(published, tmp_path, command_line):
    flags = ["--model", published["sd"], "--steps", 2, "--device", "cpu", "--out", tmp_path]
    code, _, err = command_line(GENERATE, PROMPT, *flags, "--n", 2, "--seed", 5)
    assert (
        code == 0
        and "note: 2 of 2 pictures are black (the model's safety checker blackens what it flags; seed 5, 6)" in err
    )
    trained = silent(models.open_for_training(str(published["sd"]), "cpu"))  # trainings have none
    assert trained.safety_checker is None and not trained.config.requires_safety_checker
    assert float(trained(PROMPT, num_inference_steps=2, output_type="pt").images.std()) > 0.01


def test_own_comes_back_after_others(model, tmp_path, command_line):
    """--compare draws the model's own scheduler again after another: the same picture."""
    flags = ["--model", model, "--n", 1, "--steps", 2, "--device", "cpu"]
    code, _, err = command_line(
        GENERATE, PROMPT, *flags, "--compare", "own,dpm++-sde-karras,lcm", "--out", tmp_path / "a"
    )
    assert code in (0, 2), err
    code, _, err = command_line(GENERATE, PROMPT, *flags, "--compare", "lcm,own", "--out", tmp_path / "b")
    assert code == 0, err
    run_main(GENERATE, PROMPT, *flags, "--out", tmp_path / "c")
    assert torch.equal(pixels(tmp_path / "b" / "own-seed-0.png"), pixels(tmp_path / "c" / "seed-0.png"))
    assert not torch.equal(pixels(tmp_path / "b" / "lcm-seed-0.png"), pixels(tmp_path / "c" / "seed-0.png"))


def test_a_large_model_is_offloaded_instead_of_moved(model, monkeypatch):
    """On a GPU, moving a model that does not fit would fail before offloading could help. No attention is sliced."""
    calls = []
    kind = StableDiffusionPipeline
    monkeypatch.setattr(kind, "to", lambda pipe, device: calls.append(("to", device)) or pipe)
    monkeypatch.setattr(kind, "enable_model_cpu_offload", lambda pipe, device: calls.append(("offload", device)))
    monkeypatch.setattr(
        kind, "enable_attention_slicing", lambda *_: pytest.fail("slower with SDPA, and saves nothing")
    )
    models.open_pipeline(model, device="cuda:0", dtype=torch.float32, offload=True)
    models.open_pipeline(model, device="cuda:0", dtype=torch.float32)
    models.open_pipeline(model, device="cpu", offload=True)
    assert calls == [("offload", "cuda:0"), ("to", "cuda:0"), ("to", "cpu")]


def test_photographs_are_shrunk_to_what_the_model_can_draw():
    photograph = Image.new("RGB", (4000, 3000))
    assert cut_to(photograph, None, 512).size == (592, 440)  # about 512 x 512 pixels in the same shape
    assert cut_to(photograph, (96, 64), 512).size == (96, 64)
    assert cut_to(Image.new("RGB", (1000, 700)), None, 512).size == (1000, 704)  # not much larger: as it is
