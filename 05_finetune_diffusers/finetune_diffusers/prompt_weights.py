"""Prompt weights by hand, and by the package Compel.

word+ counts 1.1 times, word++ 1.1 x 1.1, word- 0.9 times, (several words)1.5 as much as it says. A weight moves a
token's embedding away from that of the empty prompt, or towards it: see `weigh`.
"""

import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from compel import Compel, CompelForSDXL
from diffusers import DiffusionPipeline
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common.cli import pick_device
from common.errors import UserError, enough_memory, explain
from common.io.progress import refresh_interval
from common.viz import save_picture
from finetune_diffusers.generation import PipelineSettings, run_pipeline
from finetune_diffusers.images import contact_sheet
from finetune_diffusers.models import open_pipeline, prompt_notes
from finetune_diffusers.schedulers import check_schedulers, use_scheduler

Fragment = tuple[str, float]  # some words, and their weight


class PromptEmbeddings(NamedTuple):
    """What a pipeline takes in place of a prompt."""

    tokens: Tensor  # (1, M, D)
    pooled: Tensor | None = None  # (1, D) of the whole prompt, for Stable Diffusion XL


# ------------------------------------------------------------------------------------------------------------ notation


def read_weights(prompt: str) -> list[Fragment]:
    """'a red++ creature' -> [("a", 1), ("red", 1.21), ("creature", 1)], by Compel's parser.
    Weights of nested brackets are multiplied.
    """
    advice = "write red++, red-, or (red wings)1.5 with spaces around, and close every bracket"
    try:
        (found,) = Compel.parse_prompt_string(spaced(prompt)).prompts  # .and() makes several
        fragments = [(part.text, part.weight) for part in found.children]  # .blend() and .swap() have none
    except Exception as problem:  # its parser has several kinds
        raise UserError(f'cannot read the weights of "{prompt}" ({explain(problem)}); {advice}') from problem
    if any(set(text) & set("()") for text, _ in fragments):
        raise UserError(f'cannot read the weights of "{prompt}"; {advice}')
    return fragments


def spaced(prompt: str) -> str:
    """The prompt with spaces around (words)1.5: Compel sees no weight without them, and Chinese does not write them."""
    return re.sub(r"\([^()]+\)([\d.]+|\++|-+)", r" \g<0> ", prompt)


def plain_text(fragments: Sequence[Fragment]) -> str:
    """The prompt without its weights."""
    return " ".join(text for text, _ in fragments)


# ------------------------------------------------------------------------------------------------------------- by hand


def embed_by_hand(pipe: DiffusionPipeline, fragments: Sequence[Fragment]) -> PromptEmbeddings:
    """A weighted prompt as the pipeline takes it: from one text encoder, or from the two of Stable Diffusion XL.

    The pooled vector is that of the words alone. Compel (2.5) pools the prompt as it is written, with "++" and
    brackets, so the pictures differ.
    """
    if not is_xl(pipe):
        return PromptEmbeddings(weigh(pipe.tokenizer, pipe.text_encoder, fragments))
    both = ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2))
    padding = {"padding": "max_length", "max_length": pipe.tokenizer_2.model_max_length, "truncation": True}
    with torch.no_grad():
        ids = pipe.tokenizer_2(plain_text(fragments), return_tensors="pt", **padding).input_ids
        pooled = pipe.text_encoder_2(ids.to(pipe.text_encoder_2.device))[0]
    return PromptEmbeddings(
        torch.cat([weigh(tokenizer, encoder, fragments, layer=-2) for tokenizer, encoder in both], dim=2), pooled
    )


def is_xl(pipe: DiffusionPipeline) -> bool:
    return getattr(pipe, "text_encoder_2", None) is not None


def weigh(
    tokenizer: PreTrainedTokenizerBase, encoder: PreTrainedModel, fragments: Sequence[Fragment], layer: int = -1
) -> Tensor:
    """The embeddings of a weighted prompt, (1, M, D).

    Every token's embedding z becomes empty + w (z - empty), where `empty` is that of the empty prompt at the same
    position. A word of weight below 1 is also hidden from the others: the result is mixed with the embeddings of the
    prompt in which no token attends to it, the more the smaller its weight is; at 0 only these are left.
    """
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text, _ in fragments]
    length, begin, end = tokenizer.model_max_length, tokenizer.bos_token_id, tokenizer.eos_token_id
    row = [begin, *sum(ids, [])[: length - 2], end]
    weights = [1.0, *(w for (_, w), part in zip(fragments, ids, strict=True) for _ in part)][: length - 1]
    scale = torch.tensor(weights + [1.0] * (length - len(weights)), device=encoder.device)[None, :, None]  # (1, M, 1)
    empty = encode_tokens(encoder, [begin, end], tokenizer, layer=layer)

    def moved(hidden: range = range(0)) -> Tensor:
        return empty + scale * (encode_tokens(encoder, row, tokenizer, hidden, layer) - empty)

    mix, shares, place = [moved()], [1.0], 1
    for (_, w), part in zip(fragments, ids, strict=True):
        if w < 1:
            mix.append(moved(range(place, min(place + len(part), length))))
            # weight 1: nothing of it; 0.5: half and half; 0: it alone
            shares.append(math.tan((1 - max(w, 1e-5)) * math.pi / 2))
        place += len(part)
    return sum(share * z for share, z in zip(shares, mix, strict=True)) / sum(shares)


@torch.no_grad()
def encode_tokens(
    encoder: PreTrainedModel,
    row: list[int],
    tokenizer: PreTrainedTokenizerBase,
    hidden: range = range(0),
    layer: int = -1,
) -> Tensor:
    """The text encoder on one row of token ids, padded to its length;
    no token attends to the positions `hidden`. (1, M, D)

    layer  -1: the output after the final norm; -2: that of the last layer but one, without the norm
    """
    ids = torch.tensor(
        [row + [tokenizer.pad_token_id] * (tokenizer.model_max_length - len(row))], device=encoder.device
    )
    seen = torch.ones_like(ids)
    seen[:, list(hidden)] = 0
    found = encoder(ids, attention_mask=seen, output_hidden_states=layer != -1)
    return found.last_hidden_state if layer == -1 else found.hidden_states[layer]


# ----------------------------------------------------------------------------------------------------------- by Compel


def embed_by_compel(pipe: DiffusionPipeline, prompt: str) -> PromptEmbeddings:
    """The same embeddings from the package, with the pooled vector where the pipeline takes one."""
    if is_xl(pipe):
        found = CompelForSDXL(pipe)(spaced(prompt))
        return PromptEmbeddings(found.embeds, found.pooled_embeds)
    return PromptEmbeddings(Compel(tokenizer=pipe.tokenizer, text_encoder=pipe.text_encoder)(spaced(prompt)))


# ------------------------------------------------------------------------------------------------------------ pictures


def compare_weights(
    prompt: str,  # with weights, or without where `word` is given
    word: str | None,  # words of the prompt that are given each of the weights in turn
    weights: Sequence[float],  # of the word
    model: str,  # folder of a pipeline, run folder, file or hub id
    n: int,  # pictures in each row
    settings: PipelineSettings,
    out: Path,  # folder of the contact sheet
    device: str,  # as --device
) -> None:
    """Draw the prompt without weights, with Compel's and with ours; or with several weights of one word.
    Print how far the rows differ.
    """
    check_schedulers([settings.scheduler])
    fragments = read_weights(prompt)
    if word is not None:
        check_word(prompt, word, fragments)
    pipe = open_pipeline(model, "text", pick_device(device))
    check_pipeline(pipe, model)
    use_scheduler(pipe, settings.scheduler)
    pipe.set_progress_bar_config(desc="drawing", leave=False, mininterval=refresh_interval())
    for note in prompt_notes(pipe, plain_text(fragments)):
        print(f"note: {note}", file=sys.stderr)
    kinds = sweep(pipe, prompt, word, weights) if word is not None else side_by_side(pipe, prompt, fragments)
    rows = [generate_from(pipe, embeddings, n, settings) for embeddings in kinds.values()]
    for label, images in zip(kinds, rows, strict=True):
        print(
            f"{label:24} differs from the first by {float((images - rows[0]).square().mean().sqrt()):.4f} (root mean square)"
        )
    columns = [f"seed {settings.seed + i}" for i in range(n)]
    print(save_picture(contact_sheet(torch.stack(rows), list(kinds), columns), out / "sheet.png"))


def check_pipeline(pipe: DiffusionPipeline, model: str) -> None:
    """Refuse pipelines that do not take the embeddings of one CLIP, or of the two of Stable Diffusion XL."""
    known = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
    if type(pipe).__name__ not in known:
        raise UserError(
            f"{model} holds a {type(pipe).__name__}; prompt weights are known here for {' and '.join(known)}"
        )


def check_word(prompt: str, word: str, fragments: Sequence[Fragment]) -> None:
    """Refuse a word that cannot be given weights in this prompt."""
    if len(fragments) > 1 or fragments[0][1] != 1:
        raise UserError(f'--word goes with a prompt without weights, not "{prompt}"')
    if prompt.count(word) != 1 or not word.strip():
        raise UserError(f'"{word}" must occur exactly once in the prompt "{prompt}"')


def side_by_side(pipe: DiffusionPipeline, prompt: str, fragments: Sequence[Fragment]) -> dict[str, PromptEmbeddings]:
    """Embeddings of the prompt without its weights, with Compel's, and with ours."""
    print("  ".join(f"{text} ({w:.3g})" for text, w in fragments))
    theirs, ours = embed_by_compel(pipe, prompt), embed_by_hand(pipe, fragments)
    print(
        f"largest difference between Compel's embeddings and ours: {float((theirs.tokens - ours.tokens).abs().max()):.1e}"
    )
    return {"no weights": embed_by_hand(pipe, [(plain_text(fragments), 1.0)]), "Compel": theirs, "by hand": ours}


def sweep(pipe: DiffusionPipeline, prompt: str, word: str, weights: Sequence[float]) -> dict[str, PromptEmbeddings]:
    """Embeddings of the prompt with several weights of one word."""
    before, after = (part.strip() for part in prompt.split(word))
    rows = {
        w: [(text, v) for text, v in ((before, 1.0), (word, w), (after, 1.0)) if text] for w in dict.fromkeys(weights)
    }
    return {f"({word}){w:g}": embed_by_hand(pipe, fragments) for w, fragments in rows.items()}


def generate_from(pipe: DiffusionPipeline, embeddings: PromptEmbeddings, n: int, settings: PipelineSettings) -> Tensor:
    """n pictures of one prompt's embeddings: (n, 3, H, W) in [-1, 1] on the CPU."""
    empty = embed_by_hand(pipe, [("", 1.0)])
    inputs = {
        "prompt_embeds": embeddings.tokens.expand(n, -1, -1),
        "negative_prompt_embeds": empty.tokens.expand(n, -1, -1),
    }
    if embeddings.pooled is not None and empty.pooled is not None:
        inputs |= {
            "pooled_prompt_embeds": embeddings.pooled.expand(n, -1),
            "negative_pooled_prompt_embeds": empty.pooled.expand(n, -1),
        }
    with enough_memory(str(pipe.device), "--n"):
        return run_pipeline(pipe, settings, n, **inputs)
