"""What finetune.py, lora.py, dreambooth.py and controlnet.py share: the loss, the trainer, styles;
full fine-tuning, and refusals.
"""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import DDPMScheduler
from PIL import Image
from safetensors.torch import load_file

from common.data import load
from common.data.creatures.draw import POSE
from common.diffusion.schedules import make_schedule
from common.errors import UserError
from common.io.pixels import to_float
from common.models.model_folder import Model, load_model
from common.models.model_folder import save_model as save_pixels
from common.models.text.encoders import load_text, save_text, small_text
from common.models.unet import UNet
from common.models.unet_config import text_unet
from common.random import BatchRandom
from finetune_diffusers.data import latent_dataset, styles, subject
from finetune_diffusers.data.edges import agreement, edges
from finetune_diffusers.data.latent_dataset import CaptionedLatents, PriorPairs
from finetune_diffusers.evaluation import subject_metrics
from finetune_diffusers.images import images_at_once
from finetune_diffusers.pixel_pipeline import open_pixels
from finetune_diffusers.training import dreambooth
from finetune_diffusers.training.flags import settled
from finetune_diffusers.training.loop.trainer import Tuner
from finetune_diffusers.training.loss import LatentDenoising, latent_denoising, min_snr_weights
from helpers.finetune_programs import CONTROLNET, DREAMBOOTH, FEW, FINETUNE, LORA, TINY, UNET, draw, plain, rows
from helpers.programs import ROOT, load_program, run_main, run_program


def scheduler(kind: str, **more) -> DDPMScheduler:
    return DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type=kind, **more)


KINDS = ["epsilon", "v_prediction", "sample"]


@pytest.mark.parametrize("kind", KINDS)
def test_min_snr_weighs_the_error_of_x0_by_the_smaller_of_snr_and_gamma(kind):
    """Whatever is predicted: the x0 that an answer amounts to is computed as DDPMScheduler does."""
    noise = scheduler(kind, clip_sample=False)
    weights = min_snr_weights(noise, 5.0)
    alpha2 = noise.alphas_cumprod
    snr = alpha2 / (1 - alpha2)
    assert float(snr[0]) > 5 > float(snr[600])  # both sides of gamma
    torch.manual_seed(0)
    x0, eps, answer = torch.randn(3, 1, 4, 8, 8)
    for t in (3, 200, 600, 900):
        x = noise.add_noise(x0, eps, torch.tensor([t]))
        right = {"epsilon": eps, "sample": x0, "v_prediction": noise.get_velocity(x0, eps, torch.tensor([t]))}[kind]
        guess = noise.step(answer, t, x, generator=torch.Generator().manual_seed(0)).pred_original_sample
        weighted = weights[t] * (answer - right).square().mean()
        torch.testing.assert_close(weighted, snr[t].clamp(max=5) * (guess - x0).square().mean(), rtol=2e-3, atol=0)


def test_min_snr_at_pure_noise_and_switched_off():
    for kind, last in (("epsilon", 1.0), ("v_prediction", 0.0)):
        weights = min_snr_weights(scheduler(kind, rescale_betas_zero_snr=True), 5.0)
        assert weights.isfinite().all() and float(weights[-1]) == pytest.approx(last, abs=1e-6)
    assert torch.equal(min_snr_weights(scheduler("epsilon"), 0.0), torch.ones(1000))


def batch_of(n: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"mean": torch.randn(n, 4, 4, 4), "std": 0.1 * torch.ones(n, 4, 4, 4), "text": torch.randn(n, 3, 5)}


@pytest.mark.parametrize("kind", KINDS)
def test_who_knows_x0_has_no_error(kind):
    """An oracle that knows the latents predicts by the definitions of eps and v, not by diffusers."""
    noise, batch = scheduler(kind), batch_of(8)
    x0 = batch["mean"] + batch["std"] * BatchRandom(0, 0).randn(batch["mean"].shape)

    def oracle(net, x, t, batch):
        alpha, sigma = (a.sqrt().view(-1, 1, 1, 1) for a in (noise.alphas_cumprod[t], 1 - noise.alphas_cumprod[t]))
        eps = (x - alpha * x0) / sigma
        return {"epsilon": eps, "sample": x0, "v_prediction": alpha * eps - sigma * x0}[kind]

    loss = LatentDenoising(noise, torch.ones(1000), {"text": torch.zeros(3, 5)}, 0.0, oracle)
    errors = loss(None, batch, BatchRandom(0, 0))
    assert float(errors.per_sample.max()) < 1e-5
    assert sorted((8 * errors.u).long().tolist()) == list(range(8))  # and every noise level had its image


def test_captions_are_dropped_and_errors_weighed():
    batch, empty, seen = batch_of(400), torch.full((3, 5), 7.0), []

    def answer(net, x, t, batch):
        seen.append(batch["text"])
        return torch.zeros_like(x)

    loss = LatentDenoising(scheduler("epsilon"), torch.ones(1000), {"text": empty}, 0.25, answer)
    each = loss(None, batch, BatchRandom(0, 0)).per_sample
    dropped = (seen[0] == empty).all(2).all(1)
    assert 0.15 < float(dropped.float().mean()) < 0.35
    assert torch.equal(seen[0][~dropped], batch["text"][~dropped])
    weight = torch.arange(400.0)
    torch.testing.assert_close(loss(None, batch | {"weight": weight}, BatchRandom(0, 0)).per_sample, weight * each)


def test_a_pair_is_one_of_the_subject_and_one_of_its_kind_by_turns():
    """By turns, for noise levels are dealt out in the order of the rows."""

    def some(n, offset):
        place = torch.arange(n) + offset
        return CaptionedLatents(
            place.float().view(n, 1, 1, 1),
            torch.zeros(n, 1, 1, 1),
            {"text": place.float().view(n, 1, 1)},
            torch.arange(n),
            {"text": torch.zeros(1, 1)},
        )

    pairs = PriorPairs(some(3, 0), some(5, 100), prior=0.5)
    assert len(pairs) == 15
    batch = pairs.batch(torch.arange(15))
    assert batch["mean"].shape[0] == 30 and torch.equal(batch["weight"][:4], torch.tensor([1, 0.5, 1, 0.5]))
    subject, kind = batch["mean"].flatten()[::2], batch["mean"].flatten()[1::2]
    assert set(subject.tolist()) == {0, 1, 2} and set(kind.tolist()) == {100, 101, 102, 103, 104}
    assert len(set(zip(subject.tolist(), kind.tolist(), strict=True))) == 15  # every pair once
    assert torch.equal(batch["text"].flatten(), batch["mean"].flatten())


def test_edges_of_a_square_are_its_outline():
    image = torch.full((1, 3, 32, 32), -1.0)
    image[:, 1, 8:24, 8:24] = 1.0
    found = edges(image)[0, 0]
    assert 50 <= int(found.sum()) <= 70  # about 4 x 16, one pixel wide
    assert found[12:20, 12:20].sum() == 0 and found[:6].sum() == 0 and found[15, 7:9].sum() == 1
    assert edges(torch.zeros(1, 3, 8, 8)).sum() == 0


def test_agreement_of_edges():
    wanted = torch.zeros(4, 1, 16, 16)
    wanted[:, :, 8] = 1
    found = torch.zeros(4, 1, 16, 16)
    found[0, :, 8], found[1, :, 9], found[2, :, 12] = 1, 1, 1  # the same, a pixel aside, elsewhere, nothing
    assert agreement(found, wanted).tolist() == [1, 1, 0, 0]
    found[0, :, 2] = 1  # as many again, where none belong: precision 1/2, recall 1
    assert float(agreement(found, wanted)[0]) == pytest.approx(2 / 3)
    assert float(agreement(wanted * 0, wanted * 0)[0]) == 1


@pytest.mark.parametrize("name", styles.STYLES)
def test_a_style_is_unmistakable(name):
    style, images = styles.STYLES[name], load("creatures", 32, n=4)
    styled = styles.styled_pixels(style, images.pixels)
    assert (
        styles.stray(style, to_float(styled)).max() < 0.01 < 0.15 < styles.stray(style, to_float(images.pixels)).min()
    )
    others = [styles.stray(other, to_float(styled)).min() for key, other in styles.STYLES.items() if key != name]
    assert min(others) > 0.05
    assert to_float(styled).std((2, 3)).amax(1).min() > 0.2  # and it is not one flat colour
    assert styles.styled_caption(style, "a red creature") == f"a red creature, {style.words}"
    assert styles.styled_caption(style, "一只红色的小怪兽") == f"一只红色的小怪兽，{style.words_zh}"


def test_the_subject_is_always_itself():
    """As the classifier of creatures sees it, in every pose; and its scarf is what no other has."""
    portraits, others = to_float(subject.portraits(6, 64)), to_float(load("creatures", 64, n=20).pixels)
    assert (
        float(subject_metrics.subject_attributes(portraits).mean())
        > 0.9
        > 0.6
        > float(subject_metrics.subject_attributes(others).mean())
    )
    assert (
        float(subject_metrics.scarf_share(portraits).min())
        > 0.7
        > 0.1
        > float(subject_metrics.scarf_share(others).max())
    )
    assert len({tuple(p.flatten().tolist()) for p in portraits}) == 6
    assert float(subject_metrics.variety(others).mean()) > float(subject_metrics.variety(portraits).mean())


@pytest.mark.parametrize("view", subject.VIEWS[1:])
def test_a_view_can_be_undone(view):
    """Turned upright, the face of the subject in any view is its face in the first."""
    seen, front = (
        to_float(torch.from_numpy(subject.portrait("sky", 128, [0.5] * POSE, other)))[None]
        for other in (view, subject.VIEWS[0])
    )
    face = (slice(None), slice(None), slice(50, 76), slice(50, 78))
    undone, as_seen = ((images - front)[face].abs().mean() for images in (subject.upright(seen, view), seen))
    assert undone < as_seen / 3


def test_a_run_leaves_everything(tuned):
    for name in (
        "config.json",
        "metrics.csv",
        "before_after.png",
        "samples/step-000003.png",
        "results.json",
        "model/model_index.json",
    ):
        assert (tuned / name).exists(), name
    found = json.loads((tuned / "results.json").read_text())
    assert set(found["measures"]) == {"base", "tuned", "limit"} and len(found["measures"]["tuned"]) == 3
    cost, weights = found["cost"], load_file(tuned / "model" / UNET)
    n = sum(w.numel() for w in weights.values())
    assert cost["trained"] == cost["weights"] == n
    assert (
        cost["gradient_bytes"] == cost["average_bytes"] == 4 * n and 8 * n <= cost["optimizer_bytes"] < 8 * n + 10_000
    )
    assert cost["peak"] >= cost["before"] > 10_000_000
    assert [row["step"] for row in rows(tuned)] == ["1", "2", "3", "4"]


def test_the_unet_learns_and_all_else_is_frozen(base, tuned):
    before, after = load_file(base / UNET), load_file(tuned / "model" / UNET)
    assert before.keys() == after.keys()
    assert sum(not torch.equal(before[key], after[key]) for key in before) > 0.9 * len(before)
    for part in ("vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        old, new = (
            {key.removeprefix("text_model."): value for key, value in load_file(root / part).items()}
            for root in (base, tuned / "model")
        )
        assert old.keys() == new.keys() and all(torch.equal(old[key], new[key]) for key in old), part
    assert (draw(plain(tuned / "model")) != draw(plain(base))).any()


def test_a_resumed_run_is_the_same_run(tuned, tmp_path):
    """Thrown back to its checkpoint of step 2 and resumed, it ends with the same bytes."""
    again = tmp_path / "run"
    shutil.copytree(tuned, again)
    shutil.rmtree(again / "checkpoints" / "step-00000004")
    shutil.rmtree(again / "model")
    run_main(FINETUNE, "--resume", again, "--device", "cpu")
    assert (again / "model" / UNET).read_bytes() == (tuned / "model" / UNET).read_bytes()
    numbers = [
        [(row["step"], row["loss"], row["lr"], row["grad_norm"]) for row in rows(run)] for run in (again, tuned)
    ]
    assert numbers[0] == numbers[1]


def test_what_is_saved_is_the_average(tuned):
    """Not the weights of the last step, which the checkpoint holds."""
    checkpoint = tuned / "checkpoints" / "step-00000004"
    last, saved = load_file(checkpoint / "trained.safetensors"), load_file(tuned / "model" / UNET)
    assert any(not torch.equal(last[key], saved[key]) for key in saved)
    average = torch.load(checkpoint / "custom_checkpoint_1.pkl", weights_only=True)["shadow_params"]
    assert all(
        torch.equal(a, saved[name]) for a, name in zip(average, plain(tuned / "model").unet.state_dict(), strict=True)
    )


def tuner_of(base: Path, out: Path, **flags):
    """A Tuner of a few steps on random latents, and its network."""
    AcceleratorState._reset_state(reset_partial_state=True)
    pipe = plain(base)
    n, (M, D) = 4, (64, 32)
    torch.manual_seed(0)
    data = CaptionedLatents(
        torch.randn(n, 4, 8, 8),
        torch.zeros(n, 4, 8, 8),
        {"text": torch.randn(2, M, D)},
        torch.tensor([0, 1, 0, 1]),
        {"text": torch.zeros(M, D)},
    )
    args = load_program(FINETUNE).Args(
        **{"steps": 2, "batch_size": 4, "lr": 1e-2, "out": out, "precision": "no"} | flags
    )
    if args.checkpointing:
        pipe.unet.enable_gradient_checkpointing()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=args.gradient_accumulation)
    return Tuner(pipe.unet, data, latent_denoising(pipe, data, args), args, accelerator), pipe.unet


def weights_after(base: Path, out: Path, **flags) -> torch.Tensor:
    tuner, unet = tuner_of(base, out, **flags)
    for _ in tuner.run():
        pass
    return torch.cat([p.detach().flatten() for p in unet.parameters()])


def test_gradient_checkpointing_and_the_fused_optimizer_change_nothing(base, tmp_path):
    wanted = weights_after(base, tmp_path)
    torch.testing.assert_close(weights_after(base, tmp_path, checkpointing=True), wanted, atol=1e-4, rtol=0)
    torch.testing.assert_close(weights_after(base, tmp_path, optimizer="fused"), wanted, atol=1e-4, rtol=0)
    other = weights_after(base, tmp_path, gradient_accumulation=2)
    assert float((other - wanted).abs().max()) > 1e-3  # the comparison would have shown a difference


def test_the_average_comes_and_goes(base, tmp_path):
    tuner, unet = tuner_of(base, tmp_path, ema=0.9)
    start = unet.conv_in.weight.detach().clone()
    for _ in tuner.run():
        pass
    trained = unet.conv_in.weight.detach().clone()
    with tuner.averaged():
        average = unet.conv_in.weight.detach().clone()
    assert (
        torch.equal(unet.conv_in.weight, trained)
        and not torch.equal(average, trained)
        and not torch.equal(average, start)
    )


def test_training_stops_before_a_nan(base, tmp_path):
    tuner, unet = tuner_of(base, tmp_path)
    tuner.data.mean[0] = float("nan")
    before = unet.conv_in.weight.detach().clone()
    with pytest.raises(UserError, match="step 1: the loss is nan"):
        next(tuner.run())
    assert torch.equal(unet.conv_in.weight, before)


def test_a_model_of_pixels_fine_tunes_unchanged(tmp_path):
    """Chapter 2's folders have no autoencoder; what comes out is such a folder again."""
    torch.manual_seed(0)
    save_pixels(tmp_path / "pixels", Model(UNet(text_unet(16, 3, (8, 16), 32)), make_schedule("cosine"), "v", True))
    save_text(tmp_path / "pixels", small_text(["a red creature", "a blue creature with wings"], dim=32, heads=1))
    run_main(
        FINETUNE,
        *TINY,
        "--model",
        tmp_path / "pixels",
        "--size",
        16,
        "--steps",
        2,
        "--prompts",
        "a red creature",
        "--out",
        tmp_path / "run",
    )
    before, after = load_model(tmp_path / "pixels").net, load_model(tmp_path / "run").net
    assert before.cfg == after.cfg and any(
        not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True)
    )
    ids = [
        load_text(folder).tokenizer(["a blue creature"])
        for folder in (tmp_path / "pixels", tmp_path / "run" / "model")
    ]
    assert torch.equal(*ids)


def test_a_model_of_pixels_keeps_its_scheduler(recwarn):
    """A pipeline for latents turns the clipping of x0 off, with a notice.
    Images are in [-1, 1], so here it stays on, and nothing is said.
    """
    recwarn.clear()
    pipe = open_pixels(ROOT / "02_cfg_pokemon" / "pretrained", "cpu")
    assert pipe.scheduler.config.clip_sample and pipe.scheduler.config.steps_offset == 0
    assert not [str(warning.message) for warning in recwarn if "configuration file" in str(warning.message)]


@pytest.mark.parametrize(
    ("program", "flags"),
    [(LORA, ["--n", 6, "--lr", 1e-2, "--rank", 2]), (DREAMBOOTH, ["--lr", 1e-3, "--poses", 3, "--class-images", 4])],
    ids=["lora", "dreambooth"],
)
def test_two_processes_learn_as_one(program, flags, base, tmp_path):
    """torchrun on two CPU processes, two images each, against one process with four.
    Of DreamBooth only one draws the pictures of the kind.
    """
    flags = [*FEW, *flags, "--model", base, "--measure", 0, "--prompts", "a red creature", "--sample-every", 100]
    run_main(program, *flags, "--batch-size", 4, "--out", tmp_path / "one")
    # after --, for it would take --n for an option of its own
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, "--"]
    done = run_program(*torchrun, program, *flags, "--out", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("before and after") == 1  # one of them talks
    one, two = ([float(row["loss"]) for row in rows(tmp_path / name)] for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-4) and len(set(one)) == 4
    assert len(list((tmp_path / "two" / "checkpoints" / "step-00000004").glob("random_states_*.pkl"))) == 2


# ---------------------------------------------------------------------------------------------------------- DreamBooth


def test_dreambooth_keeps_its_class_images_and_resumes_exactly(dreamt, tmp_path):
    pictures = sorted((dreamt / "class_images").glob("*.png"))
    assert len(pictures) == 4
    again = tmp_path / "run"
    shutil.copytree(dreamt, again)
    shutil.rmtree(again / "checkpoints" / "step-00000004")
    shutil.rmtree(again / "model")
    run_main(DREAMBOOTH, "--resume", again, "--device", "cpu")
    assert (again / "model" / UNET).read_bytes() == (dreamt / "model" / UNET).read_bytes()
    # they were not drawn again
    assert sorted((again / "class_images").glob("*.png"))[0].stat().st_mtime == pictures[0].stat().st_mtime
    found = json.loads((dreamt / "results.json").read_text())["measures"]
    assert {"scarf in 'a sks creature'", "scarf in 'a creature'", "variety of 'a creature'"} < found["tuned"].keys()


def test_dreambooth_as_a_lora_of_ones_own_pictures_without_prior(base, tmp_path):
    (tmp_path / "mine").mkdir()
    for i, portrait in enumerate(subject.portraits(3, 32)):
        Image.fromarray(portrait.permute(1, 2, 0).numpy()).save(tmp_path / "mine" / f"{i}.png")
    flags = [
        "--model",
        base,
        "--subject",
        tmp_path / "mine",
        "--word",
        "zwx",
        "--prior",
        0,
        "--rank",
        2,
        "--measure",
        0,
        "--prompts",
        "a {}",
    ]
    run_main(DREAMBOOTH, *FEW, *flags, "--out", tmp_path / "run")
    assert not (tmp_path / "run" / "class_images").exists()
    pipe = plain(base)
    before = draw(pipe)
    pipe.load_lora_weights(tmp_path / "run", weight_name="zwx.safetensors")
    assert (draw(pipe) != before).any()


def test_how_a_word_is_spelled(base):
    pipe = plain(base)
    said = dreambooth.spelling(pipe, "sks")
    assert said.startswith("note: 'sks' is read as 3 tokens, s + k + s, and each may bring a meaning along")
    # Ruiz et al. 2022 ask for a rare token, and warn of letters that fall apart
    assert dreambooth.spelling(pipe, "red").startswith("'red' is one token: good for a rare word")
    without = SimpleNamespace(tokenizer=SimpleNamespace(tokenize=lambda word: ["<unk>"], unk_token="<unk>"))
    with pytest.raises(UserError, match="cannot write"):
        dreambooth.spelling(without, "sks")


# --------------------------------------------------------------------------------------------- what practitioners ask


def test_without_an_average_nothing_is_allocated_for_it(base, tmp_path):
    """--ema 0: the weights themselves are what is saved, checkpoints are smaller, and a resumed run goes on exactly."""
    tuner, unet = tuner_of(base, tmp_path / "run", ema=0.0, lr_schedule="constant")
    states = list(tuner.run())
    assert tuner.ema is None and states[-1].ema is None and tuner.cost.average_bytes == 0
    before = unet.conv_in.weight.detach().clone()
    with tuner.averaged() as net:
        assert torch.equal(net.conv_in.weight, before)
    kept = {path.name for path in (tmp_path / "run" / "checkpoints" / "step-00000002").glob("custom_checkpoint_*.pkl")}
    assert kept == {"custom_checkpoint_0.pkl", "custom_checkpoint_1.pkl"}  # learning rate and progress
    tuner, unet = tuner_of(base, tmp_path / "run", ema=0.0, lr_schedule="constant", steps=3, resume=tmp_path / "run")
    assert [state.step for state in tuner.run()] == [3] and not torch.equal(unet.conv_in.weight, before)


def test_noise_offset_moves_whole_channels(base, tmp_path):
    """The noise that is added has a mean of its own in every channel, with the variance asked for; 0 changes nothing."""
    seen = []

    def keep(net, x, t, batch):
        seen.append((x, t))
        return torch.zeros_like(x)

    def noise_of(offset: float) -> torch.Tensor:
        tuner, _ = tuner_of(base, tmp_path, noise_offset=offset)
        loss = replace(tuner.loss, predict=keep)
        batch = {"mean": torch.zeros(256, 4, 8, 8), "std": torch.zeros(256, 4, 8, 8), "text": torch.zeros(256, 64, 32)}
        loss(None, batch, BatchRandom(0, 0))
        x, t = seen.pop()
        sigma = (1 - loss.scheduler.alphas_cumprod[t]).sqrt().view(-1, 1, 1, 1)
        return x / sigma  # of images of zeros, all is noise

    plain, moved = noise_of(0.0), noise_of(0.5)
    means = [float(noise.mean((2, 3)).std()) for noise in (plain, moved)]
    assert means[0] == pytest.approx(1 / 8, rel=0.1) and means[1] == pytest.approx((1 / 64 + 0.25) ** 0.5, rel=0.1)
    centred = [noise - noise.mean((2, 3), keepdim=True) for noise in (plain, moved)]
    torch.testing.assert_close(*centred, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("rank", "lr"), [(0, 2e-6), (8, 1e-4)])
def test_dreambooth_takes_the_learning_rate_of_what_is_trained(monkeypatch, tmp_path, rank, lr):
    """On a model as large as Stable Diffusion 1.5, all weights and a LoRA need rates fifty times apart."""
    found = []
    monkeypatch.setattr(dreambooth, "dreambooth", lambda args, presets: found.append((args, presets)))
    run_main(DREAMBOOTH, "--rank", rank, "--out", tmp_path / "run")
    (args, presets), *_ = found
    assert settled(args, "dreambooth", presets, 859_520_964, "cuda").lr == lr
    assert args.caption_dropout == 0  # or the empty prompt would learn the subject


def test_class_images_of_ones_own(dreamt, base, tmp_path, capsys):
    """A folder with enough is used as it is; where pictures are missing, the model draws the rest into it."""
    for path in sorted((dreamt / "class_images").glob("*.png"))[:2]:
        (tmp_path / "kind").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "kind" / path.name)
    flags = [*FEW, "--steps", 1, "--model", base, "--poses", 2, "--measure", 0, "--prompts", "a {}", "--rank", 2]
    flags += ["--instance-prompt", "a drawing of {}", "--class-dir", tmp_path / "kind"]
    run_main(DREAMBOOTH, *flags, "--class-images", 3, "--out", tmp_path / "one")
    said = capsys.readouterr().out
    assert (
        'the model draws 1 pictures of "a drawing of creature"' in said
        and 'caption is "a drawing of sks creature"' in said
    )
    assert sorted(path.name for path in (tmp_path / "kind").iterdir()) == ["00000.png", "00001.png", "00002.png"]
    run_main(DREAMBOOTH, *flags, "--class-images", 2, "--out", tmp_path / "two")
    assert "the model draws" not in capsys.readouterr().out
    assert not (tmp_path / "one" / "class_images").exists()


def test_a_style_is_for_drawn_data_only(monkeypatch, tmp_path):
    """Your photographs stay photographs, unless --style says otherwise."""
    found = []
    monkeypatch.setattr(
        "finetune_diffusers.training.finetune.setup",
        lambda args, name, presets: found.append((name, args.style)) or 1 / 0,
    )
    for program, data, more in (
        (LORA, "creatures", []), (FINETUNE, "dishes", []), (LORA, "my/photos", []), (LORA, "my/photos", ["--style", "neon"])
    ):  # fmt: skip
        with pytest.raises(ZeroDivisionError):
            run_main(program, "--data", data, *more)
    assert found == [
        ("lora-creatures-woodcut", "woodcut"),
        ("finetune-dishes-riso", "riso"),
        ("lora-photos", "none"),
        ("lora-photos-neon", "neon"),
    ]


def test_large_pictures_go_through_the_networks_one_by_one():
    assert [images_at_once(side * side) for side in (64, 128, 256, 512, 768)] == [16, 16, 4, 1, 1]


# ------------------------------------------------------------------------------------------------------------ refusals


def test_help_waits_for_nothing_heavy():
    modules = (
        "import sys; sys.path.insert(0, '05_finetune_diffusers'); import finetune, lora, dreambooth, controlnet; "
    )
    done = run_program(
        "-c",
        modules + "print([m for m in ('torch', 'diffusers', 'peft', 'transformers', 'numpy') if m in sys.modules])",
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("program", [FINETUNE, LORA, DREAMBOOTH, CONTROLNET])
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--steps", 0], "--steps"),
        (["--caption-dropout", 1], "--caption-dropout"),
        (["--ema", 1.5], "--ema"),
        (["--min-snr", -1], "--min-snr"),
        (["--scheduler", "magic"], "unknown scheduler"),
        (["--size", 30], "multiple of 8"),
        (["--optimizer", "8bit"], "8bit"),
        (["--model", "./nowhere"], "there is no folder"),
        (["--resume", "nowhere"], "config.json"),
        (["--device", "cuda:7"], "the device 'cuda:7' cannot be used"),
    ],
)
def test_what_all_refuse(program, flags, says, base, tmp_path, command_line):
    model = [] if "--model" in flags else ["--model", base]
    code, _, err = command_line(program, *model, *FEW, *flags, "--out", tmp_path / "run")
    assert code == 2 and says in err and "Traceback" not in err, err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("program", [FINETUNE, LORA, CONTROLNET])
def test_a_set_without_test_images_is_refused_before_anything_is_encoded(
    program, base, tmp_path, monkeypatch, command_line
):
    for name in ("train", "extra"):
        (tmp_path / "set" / name).mkdir(parents=True)
    rows = [
        {"file_name": f"{split}/{i}.png", "text": "a red one", "split": split}
        for split in ("train", "extra")
        for i in range(2)
    ]
    for row in rows:
        Image.new("RGB", (32, 32)).save(tmp_path / "set" / row["file_name"])
    (tmp_path / "set" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(latent_dataset, "encode_images", lambda *_, **__: pytest.fail("encoded"))
    code, _, err = command_line(
        program, "--model", base, *FEW, "--data", tmp_path / "set", "--measure", 2, "--out", tmp_path / "run"
    )
    assert code == 2 and "has no split 'test'" in err, err


@pytest.mark.parametrize(
    ("program", "flags", "says"),
    [
        (FINETUNE, ["--data", "nothing"], "unknown data"),
        (FINETUNE, ["--data", "digits"], "no captions"),
        (FINETUNE, ["--n", 0], "--n"),
        (LORA, ["--rank", 0], "--rank"),
        (LORA, ["--targets", "nothing", "--n", 2, "--measure", 0], "no layer"),
        (DREAMBOOTH, ["--rank", 2, "--targets", "nothing", "--measure", 0], "no layer"),
        (LORA, ["--use", "nowhere.safetensors"], "no file"),
        (DREAMBOOTH, ["--word", ""], "--word"),
        (DREAMBOOTH, ["--subject", "nowhere"], "no folder"),
        (DREAMBOOTH, ["--prior", -1], "--prior"),
        (CONTROLNET, ["--threshold", 0], "--threshold"),
        (CONTROLNET, ["--image", "a.png"], "--use"),
        (CONTROLNET, ["--use", "nowhere"], "there is no folder nowhere"),
        (CONTROLNET, ["--prompts", "a red one", "--use", "nowhere"], "--image"),
        (CONTROLNET, ["--measure", 0], "--measure"),
        (CONTROLNET, ["--measure", 0, "--use", "nowhere"], "--measure"),
    ],
)
def test_what_one_refuses(program, flags, says, base, tmp_path, command_line):
    code, _, err = command_line(program, "--model", base, *FEW, *flags, "--out", tmp_path / "run")
    assert code == 2 and says in err and "Traceback" not in err, err
    assert not (tmp_path / "run").exists()


def test_runs_that_cannot_be_continued(base, tuned, adapted, tmp_path, command_line):
    code, _, err = command_line(FINETUNE, "--resume", adapted)
    assert code == 2 and "another program" in err
    code, _, err = command_line(FINETUNE, *TINY, "--model", base, "--out", tuned)
    assert code == 2 and "already holds a run" in err
    again = tmp_path / "run"
    shutil.copytree(adapted, again)
    (again / "checkpoints" / "step-00000004" / "optimizer.bin").write_bytes(b"not this")
    code, _, err = command_line(LORA, "--resume", again, "--device", "cpu")
    assert code == 2 and "is damaged" in err and "step-00000002" in err and "Traceback" not in err


def test_runs_are_collected_in_tables(tuned, tmp_path, command_line):
    """What a run printed at its end stands in measures.csv, and its references beside it."""
    code, out, err = command_line("05_finetune_diffusers/studies/runs.py", tuned, "--out", tmp_path)
    assert code == 0, err
    found = json.loads((tuned / "results.json").read_text())
    measures = list(csv.DictReader((tmp_path / "measures.csv").open()))
    assert [row["measure"] for row in measures] == list(found["measures"]["tuned"])
    for row in measures:
        for column, stage in (("before", "base"), ("after", "tuned"), ("limit", "limit")):
            estimate = found["measures"][stage].get(row["measure"])
            assert (row[column], row[f"{column}_low"]) == (
                ("", "") if estimate is None else (str(estimate["value"]), str(estimate["low"]))
            )
    assert any(row["limit"] for row in measures)
    (costs,) = csv.DictReader((tmp_path / "costs.csv").open())
    assert float(costs["kept_mb"]) == pytest.approx(5 * 4 * found["cost"]["weights"] / 1e6, rel=0.01)
    assert "distance from the style" in out
