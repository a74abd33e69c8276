"""What one program of chapter 5 takes, its neighbours take or refuse by name:
every program with models of every family.
"""

import importlib
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from common.errors import UserError
from common.models.vae import AutoencoderKL, small_vae
from common.training.latents import check_fit_before
from finetune_diffusers import prompt_weights
from finetune_diffusers.models import open_pipeline
from finetune_diffusers.schedulers import use_scheduler
from helpers.programs import load_program
from helpers.tiny_families import write_tiny_ddpm, write_tiny_flow, write_tiny_sd, write_tiny_xl

HERE = "05_finetune_diffusers"
PROMPT = "a red creature"


@pytest.fixture(scope="module")
def families(tmp_path_factory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("families")
    return {
        "sd-1.5": write_tiny_sd(place / "sd-1"),
        "sd-2.1": write_tiny_sd(place / "sd-2", second=True),
        "xl": write_tiny_xl(place / "xl"),
        "ddpm": write_tiny_ddpm(place / "ddpm"),
        "flow": write_tiny_flow(place / "flow"),
    }


UNMEASURED = ["--measure", 0, "--sample-steps", 1, "--batch-size", 2, "--prompts", PROMPT]
QUICK = {"generate": [PROMPT, "--n", 1, "--steps", 2], "studies/prompt_weighting": ["a red++ creature", "--n", 1, "--steps", 2],
         "restore": ["--n", 2, "--steps", 2, "--strength", 1, "--guidance", 3, "--method", "img2img"],
         **{name: ["--steps", 1, "--n", 4, *UNMEASURED] for name in ("finetune", "lora")},
         "dreambooth": ["--steps", 1, "--prior", 0, "--poses", 2, *UNMEASURED], "controlnet": ["--steps", 1, "--n", 8, "--measure", 2, "--sample-steps", 1, "--batch-size", 2],
         "train_unconditional": ["--steps", 1, "--data", "digits", "--n", 16, "--batch-size", 4]}  # fmt: skip
TAKES = {
    *((program, family) for program in QUICK if program != "train_unconditional" for family in ("sd-1.5", "sd-2.1")),
    ("generate", "xl"),
    ("generate", "flow"),
    ("studies/prompt_weighting", "xl"),
    ("restore", "xl"),
    ("finetune", "xl"),
    ("lora", "xl"),
    ("dreambooth", "xl"),
    ("train_unconditional", "ddpm"),
}


@pytest.mark.parametrize("family", ["sd-1.5", "sd-2.1", "xl", "ddpm", "flow"])
@pytest.mark.parametrize("program", QUICK)
def test_every_program_takes_every_family_or_names_it(families, tmp_path, command_line, program, family):
    code, _, err = command_line(
        f"{HERE}/{program}.py",
        *QUICK[program],
        "--model",
        families[family],
        "--device",
        "cpu",
        "--out",
        tmp_path / "out",
    )
    if (program, family) in TAKES:
        assert code == 0, err
    else:
        last = err.strip().splitlines()[-1]
        assert code == 2 and last.startswith("error: ") and "Traceback" not in err, err
        # it says what it found
        found = ("Pipeline", "inpaint", "conditioned", "UNet2D", "a Diffusion Transformer")
        assert any(name in last for name in found), last


@pytest.mark.parametrize("program", [*(name for name in QUICK if name != "train_unconditional"), "studies/strength"])
def test_a_model_keeps_its_scheduler_unless_another_is_named(program):
    """Only the sample pictures of a training from scratch have one by default: such a model has none yet."""
    args = load_program(f"{HERE}/{program}.py").Args
    assert {field.name: field.default for field in fields(args)}["scheduler"] == "own"


@pytest.mark.parametrize("scheduler", ["euler", "dpm++", "unipc"])
def test_schedulers_of_flow_matching(families, scheduler):
    """One after the other, as --compare does; each integrates the same equation,
    so with many steps all end at the same latents.
    """
    pipe = open_pipeline(families["flow"])
    pipe.set_progress_bar_config(disable=True)
    ends = []
    for name in ("euler", "dpm++", scheduler):
        use_scheduler(pipe, name)
        ends.append(
            pipe(
                PROMPT,
                num_inference_steps=100,
                width=32,
                height=32,
                generator=torch.Generator().manual_seed(0),
                output_type="latent",
            ).images
        )
    assert (ends[2] - ends[0]).abs().max() < 0.05 * ends[0].abs().max()


def test_schedulers_that_flow_matching_lacks(families, command_line):
    code, _, err = command_line(
        f"{HERE}/generate.py", PROMPT, "--n", 1, "--model", families["flow"], "--scheduler", "ddim", "--device", "cpu"
    )
    assert (
        code == 2
        and "trained for flow matching, where scheduler 'ddim' is not defined; choose one of euler, dpm++, unipc"
        in err
    )


def test_weights_of_xl_are_compels(families):
    """Both encoders, read before their last layers, and the pooled vector."""
    pipe = open_pipeline(families["xl"])
    prompt = "a (red)1.5 creature with (horns)0.4"
    theirs, ours = (
        prompt_weights.embed_by_compel(pipe, prompt),
        prompt_weights.embed_by_hand(pipe, prompt_weights.read_weights(prompt)),
    )
    torch.testing.assert_close(theirs.tokens, ours.tokens, atol=1e-5, rtol=0)
    # Compel pools "(red)1.5" with its brackets, we the words alone
    assert (theirs.pooled - ours.pooled).abs().max() > 0.01
    plain = prompt_weights.embed_by_hand(pipe, [(PROMPT, 1.0)])
    by_pipe, _, pooled, _ = pipe.encode_prompt(PROMPT, do_classifier_free_guidance=False, device="cpu")
    torch.testing.assert_close(plain.tokens, by_pipe, atol=1e-5, rtol=0)
    torch.testing.assert_close(plain.pooled, pooled, atol=1e-5, rtol=0)
    torch.testing.assert_close(prompt_weights.embed_by_compel(pipe, PROMPT).pooled, pooled, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("program", "module", "flags"),
    [
        ("02_cfg_pokemon/train.py", "cfg_pokemon.trainer", ["--text", "some/encoder"]),
        ("04_latent_sd/train.py", "latent_sd.unet_trainer", ["--text", "some/encoder"]),
        ("04_latent_sd/train_vae.py", "latent_sd.vae_trainer", ["--start", "nowhere"]),
    ],
)
def test_models_are_refused_before_data_are_drawn(tmp_path, monkeypatch, command_line, program, module, flags):
    """Drawing takes a minute; whether a model can be opened is known before."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    fit = importlib.import_module(module)
    for name in ("load", "load_all"):
        if hasattr(fit, name):
            monkeypatch.setattr(fit, name, lambda *_, **__: pytest.fail("data were loaded first"))
    code, _, err = command_line(program, *flags, "--steps", 1, "--device", "cpu", "--out", tmp_path / "run")
    assert code == 2 and ("127.0.0.1:9 did not answer" in err or "nowhere" in err), err


def test_drawn_pictures_that_cannot_fit_are_refused_before_they_are_drawn():
    vae = AutoencoderKL(small_vae(16, 1, (8, 8)))
    with pytest.raises(UserError, match="takes images with 1 channels .* those of creatures are 3 x 16 x 16"):
        check_fit_before(vae, ("creatures", "some/folder"), 16)
    check_fit_before(vae, ("some/folder",), 16)  # what is read from files is looked at when it is read
