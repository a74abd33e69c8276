"""What a training sends elsewhere: to the hub, which here is a server of the test's own, and to Weights & Biases."""

import ast
import base64
import json
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import ModuleType, SimpleNamespace

import pytest
from accelerate.utils import LoggerType
from huggingface_hub import ModelCard

from common.errors import UserError
from finetune_diffusers.training import publishing
from finetune_diffusers.training.flags import LoraFlags, check_tracker
from helpers.finetune_programs import LORA, TINY, refused
from helpers.programs import run_main


class Hub(BaseHTTPRequestHandler):
    """The requests of create_repo and create_commit, answered; what was sent is kept in the server."""

    def do_HEAD(self):
        self.reply(200, {})

    do_GET = do_HEAD

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server = self.server
        server.tokens.add(self.headers.get("authorization"))
        if server.refuses:
            self.reply(server.refuses, {"error": "no"})
        elif self.path.endswith("/repos/create"):
            asked = json.loads(body)
            server.created.append(f"{asked['organization']}/{asked['name']}")
            self.reply(200, {"url": f"{server.address}/me/it"})
        elif self.path.endswith("/validate-yaml"):
            self.reply(200, {"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self.reply(200, {"files": files})
        elif "/commit/" in self.path:
            rows = [json.loads(line)["value"] for line in body.splitlines()]
            server.files |= {row["path"]: base64.b64decode(row["content"]) for row in rows if "path" in row}
            answer = {"commitUrl": f"{server.address}/me/it/commit/{'0' * 40}", "commitOid": "0" * 40, "success": True}
            self.reply(200, answer)
        else:
            self.reply(404, {"error": self.path})

    def reply(self, status: int, answer: dict) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.address = f"http://127.0.0.1:{server.server_port}"
    server.tokens, server.created, server.files, server.refuses = set(), [], {}, 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()


def test_a_finished_run_is_published_with_a_model_card(adapted, hub, tmp_path):
    """Published later, from the run folder: the adapter, the picture, and a card with metadata and a way to use it."""
    run = shutil.copytree(adapted, tmp_path / "run")
    run_main(LORA, "--resume", run, "--device", "cpu", "--push-to-hub", "me/it")
    assert hub.created == ["me/it"] and hub.tokens == {"Bearer hf_secret"}
    assert set(hub.files) == {"README.md", "before_after.png", "creatures-woodcut.safetensors"}
    assert hub.files["creatures-woodcut.safetensors"] == (run / "creatures-woodcut.safetensors").read_bytes()
    card = ModelCard(hub.files["README.md"].decode())
    text = card.text
    assert card.data.library_name == "diffusers" and set(card.data.tags) >= {"lora", "text-to-image"}
    assert 'pipe.load_lora_weights("me/it", weight_name="creatures-woodcut.safetensors")' in text
    assert "denoising error of test images" in text and "- rank: 4" in text and "before_after.png" in text
    assert str(adapted.parent) not in text  # no path of this machine


def test_a_hub_that_refuses_is_known_before_the_training(base, hub, tmp_path, monkeypatch, command_line):
    flags = [*TINY, "--model", base, "--out", tmp_path / "run", "--push-to-hub"]
    hub.refuses = 403
    assert "'me/it' could not be written on http://127.0.0.1" in refused(command_line(LORA, *flags, "me/it"))
    assert "neither a folder nor a hub id" in refused(command_line(LORA, *flags, "not a name!"))
    monkeypatch.setattr(publishing, "get_token", lambda: None)
    assert "--push-to-hub needs a token of the hub: log in with" in refused(command_line(LORA, *flags, "me/it"))
    assert not (tmp_path / "run").exists() and not hub.files


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        (
            ("owner/base", "DreamBooth", "a sks dog"),
            ["# DreamBooth of owner/base", "base_model: owner/base", "a sks dog"],
        ),
        (("base", "ControlNet", None), ["# ControlNet of base", "controlnet"]),
        ((None, "Unconditional model", None), ["# Unconditional model\n", "unconditional-image-generation"]),
    ],
)
def test_model_cards(facts, says):
    base, kind, prompt = facts
    card = publishing.model_card(publishing.CardFacts(base, kind, "use()", "data", {"steps": 3}, "", prompt), None)
    text = str(card)
    assert all(part in text for part in (*says, "- steps: 3", "```python\nuse()\n```"))


def test_what_a_card_says_of_use_can_be_parsed():
    """Every kind of result, a prompt with quotation marks among them."""
    for kind, file in (("LoRA", "a.safetensors"), ("Fine-tuned model", None), ("ControlNet", None)):
        text = publishing.usage(kind, "StableDiffusionPipeline", "me/it", "owner/base", 'a "red" creature', file)
        calls = [
            node.func.attr
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Call) and hasattr(node.func, "attr")
        ]
        assert "from_pretrained" in calls and ("load_lora_weights" in calls) == (kind == "LoRA")
        assert ('from_pretrained("owner/base"' in text) == (kind != "Fine-tuned model")


def test_a_folders_place_is_not_published(tmp_path):
    (tmp_path / "base").mkdir()
    assert publishing.public_name(str(tmp_path / "base")) == "base"
    assert publishing.public_name("owner/base") == "owner/base"


# ------------------------------------------------------------------------------------------------------ Weights & Biases


@pytest.fixture
def wandb(monkeypatch) -> SimpleNamespace:
    """A stand-in for the package that keeps what it is told; accelerate's own tracker talks to it."""
    kept = SimpleNamespace(started=[], config={}, rows=[], finished=0)
    run = SimpleNamespace(log=lambda values, step=None, **_: kept.rows.append((step, values)), finish=lambda: finish())

    def finish() -> None:
        kept.finished += 1

    module = ModuleType("wandb")
    module.init = lambda **settings: kept.started.append(settings) or run
    module.config = SimpleNamespace(update=lambda values, **_: kept.config.update(values))
    module.Image = lambda picture: ("image", picture.size)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr("accelerate.tracking.is_wandb_available", lambda: True)
    monkeypatch.setattr("accelerate.tracking._available_trackers", [LoggerType.WANDB])
    monkeypatch.setattr("finetune_diffusers.training.flags.importlib.util.find_spec", lambda name: name)
    return kept


def test_weights_and_biases_is_told_every_step_and_picture(base, wandb, tmp_path):
    flags = [
        *TINY,
        "--measure",
        0,
        "--model",
        base,
        "--rank",
        2,
        "--prompts",
        "a red creature",
        "--report-to",
        "wandb",
    ]
    run_main(LORA, *flags, "--out", tmp_path / "run")
    assert [settings["project"] for settings in wandb.started] == ["05_finetune_diffusers"]
    assert wandb.started[0]["name"] == "run" and wandb.config["rank"] == "2"
    losses = {step: values["loss"] for step, values in wandb.rows if "loss" in values}
    assert sorted(losses) == [1, 2, 3, 4] and all(loss > 0 for loss in losses.values())
    pictures = [(step, values["validation"]) for step, values in wandb.rows if "validation" in values]
    assert [step for step, _ in pictures] == [3] and pictures[0][1][0][0] == "image" and wandb.finished == 1


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("finetune_diffusers.training.flags.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package wandb, which is not installed .*WANDB_MODE is offline"):
        check_tracker(LoraFlags(report_to="wandb"))
    check_tracker(LoraFlags())
