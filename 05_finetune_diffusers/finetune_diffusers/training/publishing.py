"""Publishes what a training has made on the Hugging Face hub, with a model card.

create_repository("owner/name")             before the training, so that a missing right to write is reported at once
publish("owner/name", files, card)          after it, as one commit

HF_ENDPOINT, HF_TOKEN and `hf auth login` count as they do for downloads (common/io/hub.py).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, ModelCardData, get_token

from common.errors import UserError
from common.io import hub

LOGIN = "log in with `hf auth login`, or put a token that may write in the environment variable HF_TOKEN"


SHOWN = ("steps", "batch_size", "gradient_accumulation", "lr", "lr_schedule", "min_snr", "ema", "size", "rank", "seed")
KINDS = {  # of models -> tags of the hub
    "Fine-tuned model": ("text-to-image",),
    "LoRA": ("text-to-image", "lora"),
    "DreamBooth": ("text-to-image", "dreambooth"),
    "ControlNet": ("text-to-image", "controlnet"),
    "Unconditional model": ("unconditional-image-generation",),
}


@dataclass(frozen=True)
class CardFacts:
    """What the model card says."""

    base_model: str | None  # its public_name; None for a model from scratch
    kind: str  # one of KINDS
    usage: str  # lines of Python
    data: str  # name, and number of images
    settings: Mapping[str, object]
    measured: str = ""  # a table
    prompt: str | None = None  # of the subject, for DreamBooth


def public_name(model: str) -> str:
    """The hub id of a model, or the name of its folder, without the path on this machine."""
    return model if model.count("/") == 1 and not Path(model).exists() else Path(model).name


def model_card(facts: CardFacts, picture: str | None) -> ModelCard:
    """The README.md of the repository. picture: a file in it"""
    base = facts.base_model or ""
    is_id = base.count("/") == 1
    metadata = ModelCardData(
        library_name="diffusers",
        base_model=base if is_id else None,
        tags=["diffusers", *KINDS[facts.kind]],
        instance_prompt=facts.prompt,
    )
    sections = [
        f"# {facts.kind}{f' of {base}' if base else ''}",
        f"Trained on {facts.data}.",
        f"![Pictures before and after the training]({picture})" if picture else "",
        f"## Use\n\n```python\n{facts.usage}\n```",
        f"## Measured\n\nMeans with 95 % intervals.\n\n```\n{facts.measured}\n```" if facts.measured else "",
        "## Settings\n\n" + "\n".join(f"- {name}: {value}" for name, value in facts.settings.items()),
    ]
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(filter(None, sections)) + "\n")


def usage(kind: str, pipeline: str, repository: str, base: str, prompt: str, file: str | None) -> str:
    """Lines of Python that draw a picture with what was trained. file: of an adapter"""
    if kind == "ControlNet":
        return (
            f"from diffusers import ControlNetModel, StableDiffusionControlNetPipeline\n\n"
            f'net = ControlNetModel.from_pretrained("{repository}")\n'
            f'pipe = StableDiffusionControlNetPipeline.from_pretrained("{base}", controlnet=net)\n'
            f"image = pipe({prompt!r}, image=edges).images[0]"
        )
    load = f'\npipe.load_lora_weights("{repository}", weight_name="{file}")' if file else ""
    return (
        f"from diffusers import {pipeline}\n\n"
        f'pipe = {pipeline}.from_pretrained("{base if file else repository}"){load}\n'
        f"image = pipe({prompt!r}).images[0]"
    )


def shown_settings(settings: Mapping[str, object]) -> dict[str, object]:
    """The settings of a run that a model card lists, where the run has them."""
    return {name: settings[name] for name in SHOWN if settings.get(name) is not None}


@contextmanager
def client(repository: str) -> Iterator[HfApi]:
    """A client of the hub; an error within this context becomes a UserError."""
    advice = "leave --push-to-hub out; a finished run can be published later with --resume RUN --push-to-hub NAME"
    if reason := hub.silent():
        raise UserError(f"--push-to-hub {repository} needs the hub, and {reason}; {advice}")
    try:
        yield HfApi(endpoint=hub.endpoint())
    except Exception as problem:  # the hub's own errors, those of its network library, OSError
        raise UserError(
            f"'{repository}' could not be written on {hub.shown_endpoint()} ({hub.why(problem, repository)}); {advice}"
        ) from problem


def create_repository(repository: str) -> None:
    """Create the repository, if it is not there yet. Refuses a name that is none, and who may not write there."""
    hub.split_id(repository, "owner/name")
    if get_token() is None:
        raise UserError(f"--push-to-hub needs a token of the hub: {LOGIN}")
    with client(repository) as api:
        api.create_repo(repository, exist_ok=True)


def publish(repository: str, files: Mapping[str, Path], card: ModelCard) -> str:
    """Upload as one commit, and return the address. files: {name in the repository: file, or folder}"""
    operations = [CommitOperationAdd("README.md", str(card).encode())]
    for name, path in files.items():
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                inside = "/".join(filter(None, (name, *file.relative_to(path).parts))) if path.is_dir() else name
                operations.append(CommitOperationAdd(inside, str(file)))
    with client(repository) as api:
        api.create_commit(repository, operations, commit_message="Add the trained model and its card")
    return f"{hub.shown_endpoint()}/{repository}"
