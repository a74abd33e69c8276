"""Names as embeddings, and the training of the model that draws dishes from them."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from common.data import export_lmdb
from common.errors import UserError
from common.models.model_folder import load_vae
from common.models.pipeline import SamplingConfig
from common.random import BatchRandom
from common.training.latents import LatentDataset
from helpers.chapter_06 import TINY_RUN, TRAIN_DISH, TRAIN_INPAINT, UNET, tiny_clip
from helpers.programs import run_main
from inpaint_gif.clip import formats
from inpaint_gif.clip.dish_names import LEARNED, name_embeddings
from inpaint_gif.clip.model import ChineseCLIP
from inpaint_gif.clip.name_encoder import CLIPNameEncoder, clip_fingerprint, open_model
from inpaint_gif.training import latent_dataset, text2dish
from inpaint_gif.training.flags import Text2DishFlags


def test_a_name_becomes_its_vector_and_a_zero(clip):
    read = CLIPNameEncoder(clip)
    text = read(["番茄炒蛋", " ", "米饭"])
    assert text.shape == (3, 2, 24) and read.dim == 24
    torch.testing.assert_close(text[0, 0] / 24**0.5, clip.encode_text(["番茄炒蛋"])[0])
    assert text[0, 0].square().mean().item() == pytest.approx(1, abs=1e-4)
    assert not text[1].any() and not text[:, 1].any()
    assert (text[0, 0] - text[2, 0]).abs().max() > 0.01


def test_the_fingerprint_knows_who_reads(clip, tmp_path):
    """Other weights or words of the text half are another reader;
    half precision and the image half are of no importance.
    """
    checkpoint, known = clip.checkpoint, clip_fingerprint(clip.checkpoint)
    formats.save_folder(tmp_path, checkpoint, torch.float16)
    assert clip_fingerprint(formats.read_folder(tmp_path)) == known
    key = "bert.encoder.layer.0.output.dense.bias"
    assert clip_fingerprint(checkpoint._replace(state=checkpoint.state | {key: checkpoint.state[key] + 0.01})) != known
    assert clip_fingerprint(checkpoint._replace(vocab=(*checkpoint.vocab[:-1], "?"))) != known
    assert (
        clip_fingerprint(
            checkpoint._replace(state=checkpoint.state | {"visual.proj": checkpoint.state["visual.proj"] + 1})
        )
        == known
    )


def test_a_run_of_text2dish_leaves_everything(dish_run, clip, sd):
    for name in (
        "config.json",
        "metrics.csv",
        "samples.png",
        "loss.png",
        "recognised.json",
        f"model/{UNET}",
        "model/vae/config.json",
        "model/scheduler/scheduler_config.json",
        "model/text2dish.json",
        "model/clip/config.json",
        "model/clip/vocab.txt",
    ):
        assert (dish_run / name).exists(), name
    assert set(json.loads((dish_run / "recognised.json").read_text())) == {"learned names", "held-out names"}
    drawer = open_model(dish_run)
    assert (drawer.size, drawer.factor, drawer.image_channels, drawer.is_inpainting) == (64, 4, 3, False)
    assert drawer.unet.cfg.text_dim == 24 and drawer.prediction == "v" and drawer.schedule.name == "cosine"
    before, after = (load_vae(folder).state_dict() for folder in (sd, dish_run))
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_it_begins_with_another_u_net_but_for_what_looks_at_text(sd, clip):
    args = Text2DishFlags(model=sd)
    unet, other = text2dish.new_unet(args, load_vae(sd), 64, clip)[0].state_dict(), open_model(sd).unet.state_dict()
    reading = {key for key in other if "attn2.to_k" in key or "attn2.to_v" in key}
    assert reading and all(torch.equal(unet[key], other[key]) for key in other.keys() - reading)
    assert all(unet[key].shape[1] == 24 != other[key].shape[1] for key in reading)
    scratch, *_ = text2dish.new_unet(replace(args, scratch=True, widths=(8, 16)), load_vae(sd), 64, clip)
    assert scratch.cfg.channels == (8, 16) and not scratch.conv_out.weight.any()


def test_a_model_of_the_same_clip_keeps_all_weights_and_grows(dish_run, clip):
    """First small images, then larger ones, as the shipped model was trained."""
    vae, args, small = load_vae(dish_run), Text2DishFlags(model=dish_run), open_model(dish_run).unet
    reading, read_below = (f"down_blocks.{i}.attentions.0.transformer_blocks.0.attn2.to_k.weight" for i in range(2))
    kept, channels = small.state_dict(), (small.cfg.channels[0], *small.cfg.channels)
    same, *_ = text2dish.new_unet(args, vae, 64, clip)
    assert all(torch.equal(weight, kept[key]) for key, weight in same.state_dict().items())
    large, *_ = text2dish.new_unet(replace(args, widths=channels), vae, 128, clip)
    assert (large.cfg.channels, large.cfg.size) == (channels, 32)
    assert torch.equal(large.state_dict()[read_below], kept[reading])
    other, *_ = text2dish.new_unet(args, vae, 64, ChineseCLIP(tiny_clip(seed=1), "transformers"))
    assert not torch.equal(other.state_dict()[reading], kept[reading])
    with pytest.raises(UserError, match=f"grows to {channels[0]} {channels[0]}"):
        text2dish.new_unet(replace(args, widths=(8, *small.cfg.channels)), vae, 128, clip)


def test_pictures_follow_names_scale_and_seed(dish_run):
    drawer, how = open_model(dish_run), SamplingConfig(guidance_scale=8.0, sampler="ddim:2")
    with torch.no_grad():
        for name, weight in drawer.unet.named_parameters():
            if "attn2" in name:
                weight *= 3  # four steps teach nobody to listen
    same = drawer.txt2img(["番茄炒蛋"], how)
    assert (
        same.shape == (1, 3, 64, 64) and same.abs().max() <= 1 and torch.equal(same, drawer.txt2img(["番茄炒蛋"], how))
    )
    others = [
        drawer.txt2img(["米饭"], how),
        drawer.txt2img(["番茄炒蛋"], SamplingConfig(guidance_scale=2.0, sampler="ddim:2")),
        drawer.txt2img(["番茄炒蛋"], replace(how, seed=1)),
        drawer.txt2img(["番茄炒蛋"], replace(how, negative_prompt="米饭")),
    ]
    assert all((other - same).abs().max() > 1e-4 for other in others)
    many = drawer.txt2img(["番茄炒蛋"] * 33, SamplingConfig(guidance_scale=1.0, sampler="ddim:1"))
    assert len(many) == 33 and (many[0] - many[32]).abs().max() > 1e-3  # the second batch has its own noise


def test_the_loss_tells_one_of_the_names_or_none(dish_run, sd, clip):
    given, pipeline = {}, open_model(dish_run)
    captions = text2dish.encode_names(clip, [("米饭", "白米饭")] * 400)
    table = captions.embeddings
    assert table.shape == (2, 24) and captions.rows.tolist() == [[0, 1]] * 400
    latents = LatentDataset(torch.randn(400, 2, 4, 16, 16).numpy(), scale=1.0)
    data = latent_dataset.ConditionedLatents(latents, {"embeddings": captions.batch})

    def net(x, t, text):
        given["embedding"] = text[:, 0] / 24**0.5
        return torch.zeros_like(x)

    errors = text2dish.NameLoss(pipeline, clip, 0.3, dish_run)(net, data.batch(torch.arange(400)), BatchRandom(0, 0))
    assert errors.per_sample.shape == (400,)
    kind = [(given["embedding"] - vector).abs().amax(1) < 1e-6 for vector in (torch.zeros(24), table[0], table[1])]
    shares = [float(k.float().mean()) for k in kind]
    assert sum(shares) == pytest.approx(1) and 0.22 < shares[0] < 0.38 and abs(shares[1] - shares[2]) < 0.12


def test_a_run_does_not_go_on_with_another_clip(dish_run, tmp_path):
    again = tmp_path / "run"
    shutil.copytree(dish_run, again)
    formats.save_folder(again / "start" / "clip", tiny_clip(seed=1))
    with pytest.raises(UserError, match="another CLIP or autoencoder"):
        run_main(TRAIN_DISH, "--resume", again, "--steps", 6, "--device", "cpu")


def test_own_photographs_with_chinese_captions(sd, clip_folder, tmp_path):
    """As a folder, and as the LMDB file that is written of it."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    rows = []
    for i in range(20):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 50, 3), np.uint8)).save(folder / f"{i:02}.png")
        rows.append(json.dumps({"file_name": f"{i:02}.png", "text": ("米饭", "番茄汤")[i % 2]}, ensure_ascii=False))
    (folder / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")
    run_main(
        TRAIN_DISH,
        *TINY_RUN,
        "--data",
        folder,
        "--model",
        sd,
        "--clip",
        clip_folder,
        "--backend",
        "transformers",
        "--names",
        "米饭",
        "--out",
        tmp_path / "a",
    )
    export_lmdb.main(export_lmdb.Args(str(folder), tmp_path / "photographs.lmdb"))
    run_main(
        TRAIN_INPAINT,
        *TINY_RUN,
        "--data",
        tmp_path / "photographs.lmdb",
        "--windows",
        1,
        "--model",
        sd,
        "--out",
        tmp_path / "b",
    )
    assert (tmp_path / "a" / "model" / UNET).exists() and (tmp_path / "b" / "model" / UNET).exists()
    assert not (tmp_path / "a" / "recognised.json").exists()


def test_a_picture_that_grows_beyond_all_bounds(dish_run, clip):
    with pytest.raises(UserError, match="try a smaller guidance scale"):
        open_model(dish_run, clip=clip).txt2img(["米饭"], SamplingConfig(guidance_scale=1e30, sampler="ddim:4"))


def test_shipped_dishes_are_recognised(shipped):
    """A tenth of what evaluate_film.py asks. Guessing is right once in 80."""
    drawer, judge = shipped
    asked = list(LEARNED)[::4]
    seen = judge.encode_image(drawer.txt2img(asked)) @ name_embeddings(judge, LEARNED).T
    named = [list(LEARNED)[k] for k in seen.argmax(1)]
    assert sum(a == b for a, b in zip(named, asked, strict=True)) >= 13 and len(asked) == 20
