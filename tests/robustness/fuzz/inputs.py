"""What the calls of the fuzz are made of: tiny valid inputs, so that an accepted call ends soon,
and hostile ones of every kind.
"""

import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = ("red", "blue", "green")


def write_valid(folder: Path, run) -> None:
    """Models, runs, pictures and data that programs accept. run(program, *flags) runs a program to its end."""
    os.chdir(folder)
    write_pictures(folder)
    from helpers.tiny_pipeline import write_tiny_pipeline

    write_tiny_pipeline(folder / "sd")
    cpu = ["--device", "cpu"]
    few = [*cpu, "--precision", "no", "--steps", "2", "--save-every", "1", "--sample-every", "100"]
    run(
        "01_ddpm_mnist/train.py",
        "--data",
        "digits",
        "--size",
        "8",
        "--channels",
        "8",
        "16",
        "--batch-size",
        "8",
        *few,
        "--sampler",
        "ddim:2",
        "--out",
        "pixels",
    )
    run(
        "02_cfg_pokemon/train.py",
        "--n",
        "8",
        "--size",
        "16",
        "--channels",
        "8",
        "16",
        "--text-dim",
        "32",
        "--batch-size",
        "4",
        *few,
        "--sampler",
        "ddim:2",
        "--out",
        "words",
    )
    run(
        "06_inpaint_gif/train_clip.py",
        "--size",
        "32",
        "--patch",
        "16",
        "--width",
        "32",
        "--layers",
        "1",
        "--text-width",
        "32",
        "--text-layers",
        "1",
        "--dim",
        "16",
        "--batch-size",
        "6",
        "--n",
        "12",
        "--held-out",
        "8",
        *few[:-2],
        "--out",
        "clip",
    )
    drawn = [*few, "--batch-size", "2", "--sampler", "ddim:2", "--model", "sd", "--n", "4"]
    run(
        "06_inpaint_gif/train_text2dish.py",
        *drawn,
        "--clip",
        "clip",
        "--backend",
        "transformers",
        "--names",
        "米饭",
        "--out",
        "dish",
    )
    run("06_inpaint_gif/train_inpaint.py", *drawn, "--windows", "1", "--holes", "1", "--out", "holes")
    run("06_inpaint_gif/train_controlnet.py", *drawn, "--windows", "1", "--out", "control")
    tuned = [
        *few,
        "--model",
        "sd",
        "--size",
        "32",
        "--batch-size",
        "2",
        "--sample-steps",
        "1",
        "--measure",
        "2",
        "--n",
        "4",
    ]
    run("05_finetune_diffusers/lora.py", *tuned, "--rank", "2", "--prompts", "a red one", "--out", "lora")
    run("05_finetune_diffusers/controlnet.py", *tuned, "--out", "edges")


def write_pictures(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for name, count, captions in (("set", 12, True), ("plain", 4, False), ("grid", 40, False)):
        (folder / name).mkdir()
        rows = []
        for i in range(count):
            size = 8 if name == "grid" else 64
            Image.fromarray(rng.integers(0, 255, (size, size, 3), dtype=np.uint8)).save(folder / name / f"{i:02}.png")
            rows.append({"file_name": f"{i:02}.png", "text": f"a {COLOURS[i % 3]} creature", "text_zh": "米饭"})
        if captions:
            (folder / name / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / "a.png")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 40, 40))
    mask.save(folder / "mask.png")
    np.save(folder / "samples.npy", rng.integers(0, 255, (40, 8, 8, 1), dtype=np.uint8))
    (folder / "answers.py").write_text("def nothing():\n    return 1\n")
    (folder / "results").mkdir()
    cost = {"weights": 10, "trained": 5, "kept": 100, "peak": 1000, "device": "cpu"}
    (folder / "results" / "results.json").write_text(json.dumps({"cost": cost, "seconds": 1.0, "steps": 2}))


def write_hostile(folder: Path) -> None:
    """Files that are not what their name says, damaged, far too large, or such that no program should touch them."""
    folder.mkdir()
    png = (folder.parent / "a.png").read_bytes()
    deep = "[" * 60_000
    files = {
        "empty": b"",
        "empty.png": b"",
        "text.png": b"this is text\n",
        "half.png": png[: len(png) // 2],
        "bomb.png": bomb(),
        "wide.png": wide(),
        "deep.json": deep.encode(),
        "list.json": b"[]",
        "nan.json": b"NaN",
        "latin.json": b'{"a": "\xe9"}',
        "text.json": b"hello",
        "empty.npy": b"",
        "text.npy": b"hello",
        "object.npy": object_array(),
        "huge.npy": huge_array(),
        "empty.lmdb": b"",
        "text.lmdb": b"x" * 9000,
        "text.safetensors": b"x" * 100,
        "huge.safetensors": struct.pack("<Q", 2**62) + b"{}",
        "text.pt": b"hello",
        "syntax.py": b"def (:\n",
        "forever.py": b"while True:\n    pass\n",
        "exit.py": b"import os\nos._exit(0)\n",
        "binary.py": bytes(range(256)),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "folder.png").mkdir()
    (folder / "nothing").mkdir()
    (folder / "loop").symlink_to("loop")
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "denied.png").write_bytes(png)
    (folder / "denied").mkdir()
    for name in ("denied.png", "denied"):
        (folder / name).chmod(0)
    os.mkfifo(folder / "pipe.png")
    write_sets(folder, png)
    write_runs(folder)


def write_sets(folder: Path, png: bytes) -> None:
    """Folders of data."""
    row = {"file_name": "a.png", "text": "a red creature"}
    tables = {
        "set_deep": "[" * 60_000,
        "set_list": json.dumps([row]),
        "set_surrogate": '{"file_name": "a.png", "text": "\\udcff"}',
        "set_number": json.dumps(row | {"text": 7}),
        "set_null": json.dumps(row | {"text": None}),
        "set_outside": json.dumps(row | {"file_name": "../../a.png"}),
        "set_absolute": json.dumps(row | {"file_name": str(folder.parent / "a.png")}),
        "set_missing": json.dumps(row | {"file_name": "b.png"}),
        "set_nul": json.dumps(row | {"file_name": "a\0.png"}),
        "set_empty_table": "",
        "set_nan": "NaN",
        "set_long": json.dumps(row | {"file_name": "a" * 300 + ".png"}),
        "set_twice": json.dumps(row) + "\n" + json.dumps(row),
        "set_folder": json.dumps(row | {"file_name": "."}),
    }
    for name, text in tables.items():
        (folder / name).mkdir()
        (folder / name / "a.png").write_bytes(png)
        (folder / name / "metadata.jsonl").write_text(text + "\n")
    pictures = {"set_bomb": bomb(), "set_text": b"text", "set_half": png[:200], "set_wide": wide(), "set_void": b""}
    for name, content in pictures.items():
        (folder / name).mkdir()
        for i in range(3):
            (folder / name / f"{i}.png").write_bytes(content)
    (folder / "set_pixel").mkdir()
    for i in range(4):
        Image.new("RGB", (1, 1 + i)).save(folder / "set_pixel" / f"{i}.png")
    (folder / "set_pipe").mkdir()
    os.mkfifo(folder / "set_pipe" / "a.png")
    (folder / "set_csv").mkdir()
    (folder / "set_csv" / "a.png").write_bytes(png)
    (folder / "set_csv" / "metadata.csv").write_bytes(b'file_name,text\n"a.png,\xff\xfe\x00\n')


def write_runs(folder: Path) -> None:
    """Models and runs that are damaged, each a copy of links to a valid one but for one file."""
    valid = folder.parent
    configs = {"deep": "[" * 60_000, "list": "[]", "nan": "NaN", "text": "hello", "void": "", "object": "{}"}
    for model, part in (
        ("sd", "unet/config.json"),
        ("sd", "vae/config.json"),
        ("sd", "scheduler/scheduler_config.json"),
        ("sd", "model_index.json"),
        ("sd", "text_encoder/config.json"),
        ("sd", "tokenizer/tokenizer_config.json"),
        ("sd", "tokenizer/vocab.json"),
        ("pixels/model", "unet/config.json"),
        ("pixels/model", "scheduler/scheduler_config.json"),
        ("pixels", "config.json"),
        ("words", "config.json"),
        ("lora", "config.json"),
        ("clip/model", "config.json"),
        ("holes/model", "unet/config.json"),
        ("dish/model", "text2dish.json"),
        ("results", "results.json"),
    ):
        for kind, text in configs.items():
            damage(
                valid / model,
                folder / f"{model.split('/')[0]}_{Path(part).parent.name}_{Path(part).stem}_{kind}",
                part,
                text.encode(),
            )
    changes = {
        ("sd", "unet/config.json"): {
            "block_out_channels": [],
            "sample_size": "64",
            "in_channels": -4,
            "norm_num_groups": 7,
            "cross_attention_dim": 1e9,
        },
        ("sd", "vae/config.json"): {
            "scaling_factor": "big",
            "latent_channels": 0,
            "block_out_channels": [0],
            "norm_num_groups": 5,
        },
        ("sd", "scheduler/scheduler_config.json"): {
            "num_train_timesteps": 0,
            "beta_schedule": ["linear"],
            "prediction_type": {},
            "beta_end": 1e99,
        },
        ("pixels/model", "scheduler/scheduler_config.json"): {
            "num_train_timesteps": -3,
            "beta_schedule": {},
            "prediction_type": [],
            "trained_betas": "x",
        },
        ("pixels/model", "unet/config.json"): {
            "sample_size": None,
            "block_out_channels": "x",
            "layers_per_block": 10**9,
            "norm_num_groups": 0,
        },
        ("results", "results.json"): {"seconds": float("nan"), "steps": "many", "cost": []},
        ("pixels", "config.json"): {
            "lr": float("nan"),
            "batch_size": -1,
            "steps": "x",
            "channels": [],
            "seed": None,
            "data": 7,
            "device": 0,
        },
    }
    for (model, part), edits in changes.items():
        config = json.loads((valid / model / part).read_text())
        for key, value in edits.items():
            damage(
                valid / model,
                folder / f"{model.split('/')[0]}_{Path(part).parent.name}_{key}",
                part,
                json.dumps(config | {key: value}).encode(),
            )
    for model, part in (
        ("sd", "unet/diffusion_pytorch_model.safetensors"),
        ("sd", "vae/diffusion_pytorch_model.safetensors"),
        ("pixels/model", "unet/diffusion_pytorch_model.safetensors"),
        ("clip/model", "model.safetensors"),
    ):
        content = (valid / model / part).read_bytes()
        for kind, damaged in {
            "half": content[: len(content) // 2],
            "text": b"hello",
            "header": struct.pack("<Q", 2**40) + content[8:],
            "missing": None,
        }.items():
            damage(
                valid / model, folder / f"{model.split('/')[0]}_{Path(part).parent.name}_weights_{kind}", part, damaged
            )


def damage(source: Path, target: Path, part: str, content: bytes | None) -> None:
    """A copy of the folder whose file `part` holds this; None: the file is missing."""
    for path in sorted(source.rglob("*")):
        if path.is_file() and "checkpoints" not in path.parts:
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            if str(path.relative_to(source)) != part:
                place.symlink_to(path)
            elif content is not None:
                place.write_bytes(content)


def bomb() -> bytes:
    """A PNG of a few hundred bytes that says it has 50,000 x 50,000 pixels."""
    return picture_header(50_000, 50_000)


def wide() -> bytes:
    """One that is 400,000 pixels wide and one high, which is no bomb to Pillow."""
    return picture_header(400_000, 1, bytes(1 + 400_000))


def picture_header(width: int, height: int, rows: bytes = b"") -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows or bytes(1000)))
        + chunk(b"IEND", b"")
    )


def object_array() -> bytes:
    import io

    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return file.getvalue()


def huge_array() -> bytes:
    """The header of an array of 8 TB, and nothing behind it."""
    head = b"{'descr': '|u1', 'fortran_order': False, 'shape': (2000000000, 64, 64, 1), }"
    head += b" " * (63 - (10 + len(head)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head
