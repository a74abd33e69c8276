"""The solutions of chapter 5's exercises are the same mathematics as the tools:
peft, accelerate, diffusers, Compel and our own programs.
"""

import diffusers
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.training_utils import EMAModel
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from common.grade.checks import load
from finetune_diffusers import prompt_weights
from finetune_diffusers.data.degradations import grow_to_blocks
from finetune_diffusers.data.latent_dataset import CaptionedLatents, PriorPairs
from finetune_diffusers.models import open_pipeline
from finetune_diffusers.schedulers import make_scheduler
from finetune_diffusers.training import controlnet
from finetune_diffusers.training.loss import min_snr_weights
from helpers.programs import ROOT
from helpers.tiny_pipeline import write_tiny_pipeline

HERE = "05_finetune_diffusers"
solutions = load(ROOT / HERE / "exercises/solutions.py", "chapter_5s_solutions")


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def same(got, right, **more):
    torch.testing.assert_close(got, right, **{"rtol": 1e-5, "atol": 1e-5} | more)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return open_pipeline(write_tiny_pipeline(tmp_path_factory.mktemp("exercises") / "model"))


def test_adapters_are_those_of_peft():
    net, W = nn.Sequential(nn.Linear(300, 8)), numbers(8, 300)
    net[0].weight.data.copy_(W)
    for name, rank, alpha in (("a", 4, 6.0), ("b", 2, 1.0)):
        inject_adapter_in_model(
            LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=["0"]), net, name
        )
        A, B = solutions.new_adapter(W, rank, torch.Generator().manual_seed(0))
        theirs = net[0].lora_A[name].weight, net[0].lora_B[name].weight
        assert A.shape == theirs[0].shape and B.shape == theirs[1].shape and not theirs[1].any() and not B.any()
        assert float(A.detach().std()) == pytest.approx(float(theirs[0].detach().std()), rel=0.15)
        theirs[1].data.normal_()
    adapters = [
        (net[0].lora_A[name].weight.data, net[0].lora_B[name].weight.data, alpha)
        for name, alpha in (("a", 6.0), ("b", 1.0))
    ]
    net[0].set_adapter(["a", "b"])
    for name, scale in (("a", 0.5), ("b", 2.0)):
        net[0].set_scale(name, scale)
    net[0].merge()
    same(solutions.merge_adapters(W, adapters, [0.5, 2.0]), net[0].base_layer.weight.data)


def test_gradients_are_accumulated_as_accelerate_does_where_parts_are_alike():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = nn.Parameter(numbers(3))

        def forward(self, part):
            return error(self.weights, part)

    def error(weights, part):
        return (torch.cos(part @ weights) - 0.3).square()

    AcceleratorState._reset_state(reset_partial_state=True)
    parts, net = list(numbers(8, 3, seed=1).split(4)), Net()
    start = net.weights.detach().clone()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    prepared, optimizer = accelerator.prepare(net, torch.optim.SGD(net.parameters(), 1.0))
    for part in parts:
        with accelerator.accumulate(prepared):
            accelerator.backward(prepared(part).mean())
            optimizer.step()
            optimizer.zero_grad()
    same(solutions.accumulate(error, start.clone().requires_grad_(), parts), start - net.weights.detach())


def test_averages_come_and_go_as_in_diffusers():
    network = nn.Linear(3, 2)
    ema = EMAModel(network.parameters(), 0.9)
    for _ in range(2):  # its first step takes the weights as they are
        with torch.no_grad():
            network.weight.add_(1)
        ema.step(network.parameters())
    trained = network.weight.detach().clone()
    ema.store(network.parameters())
    ema.copy_to(network.parameters())
    theirs = network.weight.detach().clone()
    ema.restore(network.parameters())
    drawn = solutions.averaged(list(network.parameters()), ema.shadow_params, lambda: network.weight.detach().clone())
    assert torch.equal(drawn, theirs) and not torch.equal(theirs, trained)
    assert torch.equal(network.weight, trained)


def test_the_half_life_is_that_of_the_average_of_diffusers():
    """Its decay rises from 0 in the first steps, so the average is measured between two later ones."""
    weight = nn.Parameter(torch.zeros(()))
    ema = EMAModel([weight], 0.5 ** (1 / 8), use_ema_warmup=True, inv_gamma=1e-6, power=1.0)
    ema.step([weight])
    ema.shadow_params[0].fill_(1.0)
    for _ in range(round(solutions.ema_half_life(0.5 ** (1 / 8)))):
        ema.step([weight])
    assert float(ema.shadow_params[0]) == pytest.approx(0.5, rel=1e-3)


def test_the_prior_loss_is_twice_the_mean_over_dreambooths_pairs():
    def some(n):
        return CaptionedLatents(
            torch.zeros(n, 1, 1, 1),
            torch.zeros(n, 1, 1, 1),
            {"text": torch.zeros(1, 1, 1)},
            torch.zeros(n, dtype=torch.long),
            {"text": torch.zeros(1, 1)},
        )

    weight = PriorPairs(some(3), some(5), prior=0.7).batch(torch.arange(6))["weight"]
    each = numbers(12).square()
    same(solutions.prior_loss(each, torch.tensor([False, True]).repeat(6), 0.7), 2 * (weight * each).mean())


@pytest.mark.parametrize("w", [0.0, 0.3, 1.0, 1.6])
def test_prompt_weights_are_those_of_compel(pipe, w):
    words, tokenizer, encoder = [("a", 1.0), ("red", w), ("creature", 1.0)], pipe.tokenizer, pipe.text_encoder
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text, _ in words]
    row, place = (
        [tokenizer.bos_token_id, *sum(ids, []), tokenizer.eos_token_id],
        range(1 + len(ids[0]), 1 + len(ids[0]) + len(ids[1])),
    )
    z, hidden = (prompt_weights.encode_tokens(encoder, row, tokenizer, at)[0] for at in (range(0), place))
    empty = prompt_weights.encode_tokens(encoder, [row[0], row[-1]], tokenizer)[0]
    word = torch.zeros(len(z), dtype=torch.bool)
    word[list(place)] = True
    got = solutions.weigh_word(z, empty, hidden, word, w)
    same(got, prompt_weights.weigh(tokenizer, encoder, words)[0], atol=1e-3)
    same(got, prompt_weights.embed_by_compel(pipe, f"a (red){w:g} creature").tokens[0].detach(), atol=1e-3)


def test_a_controlnet_speaks_as_in_diffusers(pipe):
    net = controlnet.new_controlnet(pipe.unet, pipe.vae_scale_factor, 0)
    heard = []
    with torch.no_grad():
        for k, convolution in enumerate(net.controlnet_down_blocks):
            convolution.weight.copy_(numbers(*convolution.weight.shape, seed=k))
            convolution.bias.copy_(numbers(*convolution.bias.shape, seed=k))
            convolution.register_forward_hook(lambda layer, given, answer: heard.append(given[0]))
        x, text, edges = numbers(1, 4, 8, 8), numbers(1, 64, 32, seed=1), torch.zeros(1, 3, 32, 32)
        theirs = net(x, torch.tensor([400]), text, controlnet_cond=edges, conditioning_scale=0.6, return_dict=False)[0]
        kernels, biases = ([getattr(part, name) for part in net.controlnet_down_blocks] for name in ("weight", "bias"))
        features = [numbers(*residual.shape, seed=k) for k, residual in enumerate(heard)]
        got = solutions.controlled(features, heard, kernels, biases, 0.6)
    assert len(got) == len(theirs) > 2
    for mine, feature, said in zip(got, features, theirs, strict=True):
        same(mine, feature + said, atol=1e-3)


def test_inpainting_is_that_of_diffusers(pipe):
    """Which looks at one pixel of each block of the mask: it is given whole blocks, as our restore.py does."""
    scheduler = make_scheduler("ddim", dict(pipe.scheduler.config))
    other = diffusers.StableDiffusionInpaintPipeline(
        **pipe.components | {"scheduler": scheduler}, requires_safety_checker=False
    )
    other.set_progress_bar_config(disable=True)
    picture, noise, mask = numbers(1, 3, 64, 64).clamp(-1, 1), numbers(1, 4, 16, 16, seed=1), torch.zeros(1, 1, 64, 64)
    mask[..., 10:30, 17:40] = mask[..., 3, :] = 1
    seed = torch.Generator().manual_seed
    theirs = other(
        "a red creature",
        image=(picture + 1) / 2,
        mask_image=grow_to_blocks(mask, 4),
        strength=1.0,
        guidance_scale=1.0,
        num_inference_steps=5,
        latents=noise,
        generator=seed(5),
        output_type="latent",
        height=64,
        width=64,
    ).images

    z, text = other._encode_vae_image(picture, seed(5)), other.encode_prompt(["a red creature"], "cpu", 1, False)[0]
    scheduler.set_timesteps(5)
    levels = torch.cat([scheduler.alphas_cumprod[scheduler.timesteps], torch.ones(1)])

    @torch.no_grad()
    def step(x, k):
        t = scheduler.timesteps[k]
        return scheduler.step(pipe.unet(x, t, text).sample, t, x).prev_sample

    got = solutions.inpaint(step, noise, z, noise, mask, 4, levels.sqrt(), (1 - levels).sqrt())
    same(got, theirs, atol=1e-3)
    assert torch.equal(got[..., 15, 15], z[..., 15, 15])


@pytest.mark.parametrize(("steps", "strength"), [(50, 0.58), (20, 0.4), (10, 1.0)])
def test_img2img_starts_where_diffusers_does(pipe, steps, strength):
    image_pipe = diffusers.StableDiffusionImg2ImgPipeline(
        **pipe.components | {"scheduler": make_scheduler("ddim", dict(pipe.scheduler.config))},
        requires_safety_checker=False,
    )
    image_pipe.scheduler.set_timesteps(steps)
    times, (z, eps) = image_pipe.scheduler.timesteps, (numbers(1, 4, 8, 8, seed=k) for k in (1, 2))
    theirs, n = image_pipe.get_timesteps(steps, strength, "cpu")
    x, rest = solutions.img2img_start(z, eps, times.tolist(), image_pipe.scheduler.alphas_cumprod, strength)
    assert rest == theirs.tolist() and len(rest) == n
    same(x, image_pipe.scheduler.add_noise(z, eps, theirs[:1]))


def test_files_of_kohya_are_read_as_diffusers_writes_them():
    adapter = {
        f"unet.down_blocks.0.attentions.1.to_{name}.lora_{part}.weight": numbers(*shape, seed=k)
        for k, name in enumerate("qk")
        for part, shape in (("A", (2, 6)), ("B", (5, 2)))
    }
    file = convert_state_dict_to_kohya(adapter)
    layers = [f"down_blocks.0.attentions.1.to_{name}" for name in "qkv"]
    got = solutions.from_kohya(file, layers)
    assert list(got) == layers[:2]
    for layer, (A, B, alpha) in got.items():
        assert torch.equal(A, adapter[f"unet.{layer}.lora_A.weight"]) and alpha == 2
        assert torch.equal(B, adapter[f"unet.{layer}.lora_B.weight"])


def test_min_snr_weights_are_the_programs_own():
    for prediction, name in (("v", "v_prediction"), ("eps", "epsilon")):
        scheduler = diffusers.DDPMScheduler(prediction_type=name)
        ours = solutions.fix_min_snr(scheduler.alphas_cumprod, 5.0, prediction)
        same(ours, min_snr_weights(scheduler, 5.0), atol=1e-4)


def test_a_merged_file_draws_as_several_adapters():
    """At full rank nothing is lost."""
    adapters = [(numbers(2, 7, seed=k), numbers(7, 2, seed=k + 5), 3.0 + k) for k in range(2)]
    A, B = solutions.merge_to_rank(adapters, [0.5, 2.0], 4)
    W = numbers(7, 7, seed=9)
    same(
        solutions.merge_adapters(W, [(A, B, 4.0)], [1.0]), solutions.merge_adapters(W, adapters, [0.5, 2.0]), atol=1e-4
    )
