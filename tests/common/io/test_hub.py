"""The one look-up of the Hugging Face hub, against a hub on this computer: mirrors, gates, logins, revisions;
and pipelines from there.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from common.errors import UserError
from common.io import hub
from common.io.weight_files import chosen_files, variant_in
from common.models.pipeline_folder import find_pipeline, missing_parts, needed_files
from helpers.programs import ROOT
from helpers.tiny_pipeline import write_tiny_pipeline

COMMIT = "1" * 40


class FakeHub:
    """A hub that holds the files of some repositories, refuses others, and keeps a list of what was asked for."""

    def __init__(self):
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.refusals: dict[str, tuple[int, str]] = {}  # name -> (status, the code in the header)
        self.asked: list[str] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                fake.asked.append(self.path)
                fake.answer(self, self.path.split("?")[0])

            do_HEAD = do_GET

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request, path: str) -> None:
        name = "/".join(path.removeprefix("/api/models/").strip("/").split("/")[:2])
        if name in self.refusals:
            status, code = self.refusals[name]
            return self.send(request, status, X_Error_Code=code, X_Error_Message="refused by the test")
        files = self.repositories.get(name)
        if files is None:
            return self.send(request, 404, X_Error_Code="RepoNotFound")
        if path.startswith("/api") and ("/revision/" not in path or path.split("/revision/")[1] in ("main", COMMIT)):
            tree = [
                {"type": "file", "path": n, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
                for n, b in files.items()
            ]
            info = {"_id": "0", "id": name, "sha": COMMIT, "siblings": [{"rfilename": n} for n in files]}
            return self.send(
                request, 200, json.dumps(tree if "/tree/" in path else info).encode(), Content_Type="application/json"
            )
        file = path.split("/resolve/")[-1].partition("/")[2]
        if path.startswith("/api") or file not in files:
            return self.send(
                request, 404, X_Error_Code="RevisionNotFound" if path.startswith("/api") else "EntryNotFound"
            )
        return self.send(
            request, 200, files[file], ETag=f'"{hashlib.sha1(files[file]).hexdigest()}"', X_Repo_Commit=COMMIT
        )

    @staticmethod
    def send(request, status: int, body: bytes = b"", **headers) -> None:
        request.send_response(status)
        for key, value in headers.items():
            request.send_header(key.replace("_", "-"), value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    served = FakeHub()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    for name in (*hub.OFFLINE, "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", served.address + "/")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the library waits before it tries again
    yield served
    served.server.shutdown()
    served.server.server_close()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny_pipeline(tmp_path_factory.mktemp("hub") / "model")


def refused(name: str) -> str:
    with pytest.raises(UserError) as problem:
        find_pipeline(name)
    assert "\n" not in str(problem.value)
    return str(problem.value)


# --------------------------------------------------------------------------------------------------------- its address


@pytest.mark.parametrize(
    ("given", "address"),
    [
        (None, hub.PUBLIC),
        ("", hub.PUBLIC),
        ("  ", hub.PUBLIC),
        ("hf-mirror.com", "https://hf-mirror.com"),
        ("https://hf-mirror.com/", "https://hf-mirror.com"),
        ("http://127.0.0.1:8931", "http://127.0.0.1:8931"),
        ("https://a.b/hub/", "https://a.b/hub"),
        ("mirror.lan:8080", "https://mirror.lan:8080"),
    ],
)
def test_endpoint(given, address):
    environment = {} if given is None else {"HF_ENDPOINT": given}
    assert hub.endpoint(environment) == address
    hub.tidy_environment(environment)
    assert environment == ({} if given is None else {"HF_ENDPOINT": address})


@pytest.mark.parametrize("given", ["hf mirror.com", "ftp://a.b", "https://", "https://a.b?x=1"])
def test_an_endpoint_that_is_no_address(given):
    with pytest.raises(
        UserError, match="HF_ENDPOINT holds .* no address of a web server; write https://hf-mirror.com"
    ):
        hub.endpoint({"HF_ENDPOINT": given})
    environment = {"HF_ENDPOINT": given}
    hub.tidy_environment(environment)  # says nothing yet: a program may never need the hub
    assert environment == {"HF_ENDPOINT": given}


@pytest.mark.parametrize(("given", "address"), [("", hub.PUBLIC), ("hf-mirror.com", "https://hf-mirror.com")])
def test_the_libraries_are_given_the_same_address(given, address):
    """They read the variable when they are imported, which is after `common`."""
    code = "import common, huggingface_hub.constants as c; print(c.ENDPOINT)"
    environment = os.environ | {"HF_ENDPOINT": given, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.split() == [address]


def test_an_empty_or_bare_endpoint_is_really_asked(fake, monkeypatch):
    asked = []
    monkeypatch.setattr(hub, "unanswered", lambda url: asked.append(url) or "did not answer (the test)")
    for given, address in (("", hub.PUBLIC), ("hf-mirror.com", "https://hf-mirror.com")):
        monkeypatch.setenv("HF_ENDPOINT", given)
        assert f"{address} did not answer (the test)" in refused("some/model") and asked[-1] == address


def test_offline_asks_nobody(fake, monkeypatch):
    monkeypatch.setattr(hub, "unanswered", lambda url: pytest.fail("the network was used"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "the hub was not asked, because HF_HUB_OFFLINE is set" in refused("some/model") and not fake.asked


def test_why_there_is_no_answer(monkeypatch):
    assert hub.unanswered("http://127.0.0.1:9") == "did not answer (Connection refused)"
    monkeypatch.setenv("http_proxy", "http://me:secret@127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert hub.through_proxy("http://hub.example") == " through the proxy http://127.0.0.1:9"  # without the password
    monkeypatch.setenv("no_proxy", "hub.example")
    assert hub.through_proxy("http://hub.example") == ""


# ----------------------------------------------------------------------------------------------------- what it refuses


def test_a_gated_model_wants_its_terms_accepted_and_a_login(fake, monkeypatch):
    fake.refusals = {"owner/name": (401, "GatedRepo"), "owner/other": (403, "GatedRepo")}
    said = refused("owner/name")
    assert (
        f"accept its terms on {fake.address}/owner/name, then log in with `hf auth login`, or put a token" in said
        and "HF_TOKEN" in said
    )
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert "then use a token of the account that accepted them" in refused("owner/other")


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (
            404,
            "RepoNotFound",
            "no such repository is visible there: check the name; if it is private, log in with `hf auth login`",
        ),
        (401, "RepoNotFound", "no such repository is visible there"),
        (403, "", "the answer was 403, no access: log in with `hf auth login`"),
        (429, "", "the answer was 429, too many requests: wait some minutes, or log in"),
    ],
)
def test_other_refusals(fake, status, code, said):
    fake.refusals = {"owner/name": (status, code)}
    assert said in refused("owner/name")


def test_a_server_that_fails(fake):
    fake.refusals = {"owner/name": (500, "")}
    assert "the answer was 500" in refused("owner/name")


def test_the_other_users_of_the_hub_say_the_same(fake):
    from common.models.text.hub import find_encoder

    fake.refusals = {"owner/name": (401, "GatedRepo")}
    with pytest.raises(UserError, match="accept its terms on .*give a local folder instead"):
        find_encoder("owner/name")


def test_a_gated_data_set(fake, monkeypatch):
    """`datasets` wraps the hub's error into one of its own."""
    import httpx
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import GatedRepoError

    response = httpx.Response(401, request=httpx.Request("GET", f"{fake.address}/api/datasets/owner/set"), headers={})
    outer = DatasetNotFoundError("Dataset 'owner/set' is a gated dataset on the Hub.")
    response._url = f"{fake.address}/datasets/owner/set"
    outer.__cause__ = GatedRepoError("Access denied", response=response)
    assert f"accept its terms on {fake.address}/datasets/owner/set, then log in" in hub.why(outer, "owner/set")


# ------------------------------------------------------------------------------------------------ pipelines of the hub


def served(model: Path) -> dict[str, bytes]:
    return {str(path.relative_to(model)): path.read_bytes() for path in model.rglob("*") if path.is_file()}


def test_a_pipeline_is_downloaded_once_without_what_it_does_not_need(fake, model):
    files = served(model)
    extra = {
        "v1-5.safetensors": b"gigabytes",
        "unet/diffusion_pytorch_model.bin": b"old",
        "unet/diffusion_pytorch_model.fp16.safetensors": b"half",
        "unet/model.onnx": b"other",
        "vae/run.py": b"code",
    }
    fake.repositories["some/model"] = files | extra
    folder = find_pipeline("some/model")
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == set(
        files
    ) and not missing_parts(folder)
    asked = len(fake.asked)
    assert find_pipeline("some/model") == folder and len(fake.asked) == asked  # from the cache


def test_only_what_there_is_is_downloaded(fake, model):
    """A repository with fp16 variants alone."""
    files = {name.replace("model.safetensors", "model.fp16.safetensors"): data for name, data in served(model).items()}
    fake.repositories["some/half"] = files
    folder = find_pipeline("some/half")
    assert variant_in(folder) == "fp16" and not missing_parts(folder)


def test_revisions(fake, model):
    fake.repositories["some/model"] = served(model)
    assert find_pipeline(f"some/model@{COMMIT}").name == COMMIT
    assert "it has no revision 'v9'; name another after the @, or none" in refused("some/model@v9")


def test_a_repository_that_is_no_pipeline(fake):
    fake.repositories["some/lora"] = {"lora.safetensors": b"x", "README.md": b"y"}
    assert "no model_index.json among the files of that repository (lora.safetensors, README.md)" in refused(
        "some/lora"
    )


# ---------------------------------------------------------------------------------------------------------- file names


def test_sets_of_weights(tmp_path):
    name = "diffusion_pytorch_model"
    shards = [f"{name}-0000{i}-of-00002.safetensors" for i in (1, 2)] + [f"{name}.safetensors.index.json"]
    half = [f"{name}-0000{i}-of-00002.fp16.safetensors" for i in (1, 2)] + [f"{name}.safetensors.index.fp16.json"]
    new = [f"{name}.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert chosen_files(["config.json", *shards]) == [shards[2], *shards[:2]]
    assert (
        chosen_files(half) == [half[2], *half[:2]]
        and chosen_files([*new, f"{name}.fp16.safetensors.index.json"])[1:] == new
    )
    mixed = [
        "model.safetensors",
        "pytorch_model.bin",
        "model.non_ema.safetensors",
        "config.json",
        "model.onnx",
        "training_args.bin",
        "sd.ckpt",
    ]
    assert chosen_files(mixed) == ["model.safetensors"] and chosen_files(["config.json", "sd.ckpt"]) == []
    index = json.dumps(
        {
            "unet": ["diffusers", "UNet2DConditionModel"],
            "scheduler": ["diffusers", "DDIM"],
            "safety_checker": [None, None],
        }
    )
    files = [
        "model_index.json",
        "unet/config.json",
        *(f"unet/{n}" for n in shards + half),
        "scheduler/scheduler_config.json",
        "safety_checker/config.json",
    ]
    (tmp_path / "model_index.json").write_text(index)
    wanted = needed_files(files, lambda name: tmp_path / name)
    assert set(wanted) == {
        "model_index.json",
        "unet/config.json",
        *(f"unet/{n}" for n in shards),
        "scheduler/scheduler_config.json",
    }


def test_messages_do_not_show_the_password_of_a_mirror(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://ada:secret@127.0.0.1:9")
    monkeypatch.setattr(hub, "offline", lambda: False)
    monkeypatch.setattr("common.io.hub.unanswered", lambda url: "did not answer")
    assert hub.silent() == "http://127.0.0.1:9 did not answer"
