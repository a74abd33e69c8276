"""Prompt weights: say of each word how much it counts, with the package Compel, and the same by hand.

  python 05_finetune_diffusers/prompt_weighting.py "a red++ creature with (wings)1.5"
  python 05_finetune_diffusers/prompt_weighting.py "a blue creature with (big horns)0.4 and a long tail" --n 8
  python 05_finetune_diffusers/prompt_weighting.py "a green creature with wings" --word wings --sweep 0 0.5 1 1.5 2

word+ counts 1.1 times, word++ 1.1 x 1.1, word- 0.9 times, (several words)1.5 what it says. The text encoder turns a prompt into one
vector for each token, and the prompt "" into vectors as well; a weight moves a token's vector away from that of the empty prompt,
or towards it. That is all: ten lines, in `weigh` below. Stable Diffusion XL has two text encoders, each read before its last layer; their
vectors are joined, and a pooled vector of the plain prompt goes with them. Writes pictures of the plain prompt, of Compel's and of ours, side by side.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

from tyro.conf import Positional

from common.cli import pick_device, run
from common.errors import UserError, enough_memory, explain
from common.io.ranges import SAMPLER_STEPS, Range
from finetune_diffusers.models import OUT, PRETRAINED, check_schedulers

if TYPE_CHECKING:
    from torch import Tensor

Fragment = tuple[str, float]  # some words, and how much they count


class Words(NamedTuple):
    """What a pipeline is shown of a prompt."""

    embeddings: "Tensor"              # (1, M, D)
    pooled: "Tensor | None" = None    # (1, D) of the whole prompt, for Stable Diffusion XL

PIECE = re.compile(r"\((?P<group>[^()]+)\)(?P<how>\d*\.?\d+|\++|-+)|(?P<word>[^\s()]*[^\s()+-])(?P<signs>\++|-+)(?=\s|$)")


@dataclass(frozen=True)
class Args:
    prompt: Positional[str] = "a red++ creature with (wings)1.5"
    """With weights: red++, red-, (red wings)1.5."""
    word: str | None = None
    """Words of the prompt, which here has no weights: they are given several, one row for each."""
    sweep: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0)
    """The weights of --word."""
    model: str = str(PRETRAINED)
    """The folder of a pipeline, a run folder, a checkpoint in one file, or a hub id."""
    n: int = 4
    """Pictures of each."""
    scheduler: str = "dpm++"
    steps: Annotated[int, SAMPLER_STEPS] = 25
    guidance: Annotated[float, Range(1, 1000, hint="1 is off")] = 3.0
    """Guidance scale w, 1 or more."""
    seed: int = 0
    """Of the first picture; the next has seed + 1."""
    out: Path = OUT / "weights"
    """The folder that the pictures go to."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or one for each core that is free."""


# ----------------------------------------------------------------------------------------------------------------- by hand


def by_hand(pipe, fragments: list[Fragment]) -> Words:
    """A weighted prompt as the pipeline is shown it: by one text encoder, or by the two of Stable Diffusion XL.

    The pooled vector is that of the words alone. Compel (2.5) pools the prompt as it is written, with "++" and brackets, so the pictures differ.
    """
    import torch

    if not is_xl(pipe):
        return Words(weigh(pipe.tokenizer, pipe.text_encoder, fragments))
    both = ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2))
    plain = " ".join(text for text, _ in fragments)
    with torch.no_grad():
        ids = pipe.tokenizer_2(plain, padding="max_length", max_length=pipe.tokenizer_2.model_max_length, truncation=True, return_tensors="pt").input_ids
        pooled = pipe.text_encoder_2(ids.to(pipe.text_encoder_2.device))[0]
    return Words(torch.cat([weigh(tokenizer, encoder, fragments, last=-2) for tokenizer, encoder in both], dim=2), pooled)


def is_xl(pipe) -> bool:
    return getattr(pipe, "text_encoder_2", None) is not None


def weigh(tokenizer, encoder, fragments: list[Fragment], last: int = -1) -> "Tensor":
    """The embeddings of a weighted prompt, (1, M, D).

    Every token's vector z becomes empty + w (z - empty), where `empty` is what the encoder makes of "" at the same place. A word of
    weight below 1 is also hidden from the others: the result is mixed with the embeddings of the prompt in which no token may look
    at it, all the more the smaller its weight; at 0 only these are left.
    """
    import torch

    ids = [tokenizer(text, add_special_tokens=False).input_ids for text, _ in fragments]
    length, begin, end = tokenizer.model_max_length, tokenizer.bos_token_id, tokenizer.eos_token_id
    row = [begin, *sum(ids, [])[: length - 2], end]
    scale = [1.0, *(w for (_, w), part in zip(fragments, ids, strict=True) for _ in part)][: length - 1]
    scale = torch.tensor(scale + [1.0] * (length - len(scale)), device=encoder.device)[None, :, None]  # (1, M, 1)
    empty = encode(encoder, [begin, end], tokenizer, last=last)

    def moved(hidden: range = range(0)) -> "Tensor":
        return empty + scale * (encode(encoder, row, tokenizer, hidden, last) - empty)

    mix, shares, place = [moved()], [1.0], 1
    for (_, w), part in zip(fragments, ids, strict=True):
        if w < 1:
            mix.append(moved(range(place, min(place + len(part), length))))
            shares.append(math.tan((1 - max(w, 1e-5)) * math.pi / 2))  # weight 1: nothing of it; 0.5: half and half; 0: it alone
        place += len(part)
    return sum(share * z for share, z in zip(shares, mix, strict=True)) / sum(shares)


def encode(encoder, row: list[int], tokenizer, hidden: range = range(0), last: int = -1) -> "Tensor":
    """The text encoder on one row of token ids, filled up to its length; no token looks at the places `hidden`. (1, M, D)

    last  -1: after its final norm; -2: what its last layer but one gives, without that norm
    """
    import torch

    ids = torch.tensor([row + [tokenizer.pad_token_id] * (tokenizer.model_max_length - len(row))], device=encoder.device)
    seen = torch.ones_like(ids)
    seen[:, list(hidden)] = 0
    with torch.no_grad():
        found = encoder(ids, attention_mask=seen, output_hidden_states=last != -1)
        return found.last_hidden_state if last == -1 else found.hidden_states[last]


def read_weights(prompt: str) -> list[Fragment]:
    """'a red++ creature' -> [("a", 1), ("red", 1.21), ("creature", 1)]; brackets do not nest here (in Compel they do)."""
    fragments, place = [], 0
    for found in PIECE.finditer(prompt):
        fragments.append((prompt[place : found.start()].strip(), 1.0))
        fragments.append((found["group"] or found["word"], how_much(found["how"] or found["signs"])))
        place = found.end()
    fragments.append((prompt[place:].strip(), 1.0))
    if any(set(text) & set("()") for text, _ in fragments):
        raise UserError(f'cannot read the weights of "{prompt}"; write red++, red-, or (red wings)1.5, one pair of brackets at a time')
    return [(text, w) for text, w in fragments if text] or [("", 1.0)]


def how_much(sign: str) -> float:
    """'++' -> 1.21, '-' -> 0.9, '1.5' -> 1.5"""
    return {"+": 1.1, "-": 0.9}[sign[0]] ** len(sign) if sign[0] in "+-" else float(sign)


# --------------------------------------------------------------------------------------------------------------- by Compel


def by_compel(pipe, prompt: str) -> "Tensor":
    """The same embeddings from the package. (1, M, D)"""
    return words_by_compel(pipe, prompt).embeddings


def words_by_compel(pipe, prompt: str) -> Words:
    """The same with the pooled vector, where the pipeline takes one.

    It sees a weight only where spaces stand around it, which Chinese does not write: they are put there.
    """
    from compel import Compel, CompelForSDXL

    spaced = PIECE.sub(r" \g<0> ", prompt)
    try:
        if is_xl(pipe):
            found = CompelForSDXL(pipe)(spaced)
            return Words(found.embeds, found.pooled_embeds)
        return Words(Compel(tokenizer=pipe.tokenizer, text_encoder=pipe.text_encoder)(spaced))
    except Exception as problem:  # its parser has several kinds
        raise UserError(f'Compel cannot read "{prompt}" ({explain(problem)}); write red++, red-, or (red wings)1.5') from problem


# ---------------------------------------------------------------------------------------------------------------- pictures


def main(args: Args) -> None:
    check_schedulers([args.scheduler])
    fragments = read_weights(args.prompt)
    if args.word is not None:
        check_word(args, fragments)
    device = pick_device(args.device)

    import sys

    import torch

    from common.viz import save_picture
    from finetune_diffusers.models import open_pipeline, remarks, sheet, use_scheduler

    pipe = open_pipeline(args.model, "text", device)
    check_pipeline(pipe, args.model)
    use_scheduler(pipe, args.scheduler)
    pipe.set_progress_bar_config(desc="drawing", leave=False, mininterval=0.5)
    plain = " ".join(text for text, _ in fragments)
    for sentence in remarks(pipe, plain):
        print(f"note: {sentence}", file=sys.stderr)
    kinds = sweep(pipe, args) if args.word is not None else side_by_side(pipe, args.prompt, plain, fragments)
    rows = [draw(pipe, z, args) for z in kinds.values()]
    for label, images in zip(kinds, rows, strict=True):
        print(f"{label:24} differs from the first by {float((images - rows[0]).square().mean().sqrt()):.4f} (root mean square)")
    columns = [f"seed {args.seed + i}" for i in range(args.n)]
    print(save_picture(sheet(torch.stack(rows), list(kinds), columns), args.out / "sheet.png"))


def check_pipeline(pipe, model: str) -> None:
    """Weights are for pipelines that take the vectors of one CLIP, or of the two of Stable Diffusion XL."""
    known = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
    if type(pipe).__name__ not in known:
        raise UserError(f"{model} holds a {type(pipe).__name__}; prompt weights are known here for {' and '.join(known)}")


def check_word(args: Args, fragments: list[Fragment]) -> None:
    if len(fragments) > 1 or fragments[0][1] != 1:
        raise UserError(f'--word goes with a prompt without weights, not "{args.prompt}"')
    if args.prompt.count(args.word) != 1 or not args.word.strip():
        raise UserError(f'"{args.word}" must occur exactly once in the prompt "{args.prompt}"')


def side_by_side(pipe, prompt: str, plain: str, fragments: list[Fragment]) -> dict[str, Words]:
    """Embeddings of the prompt without its weights, with Compel's, and with ours."""
    print("  ".join(f"{text} ({w:.3g})" for text, w in fragments))
    theirs, ours = words_by_compel(pipe, prompt), by_hand(pipe, fragments)
    print(f"largest difference between Compel's embeddings and ours: {float((theirs.embeddings - ours.embeddings).abs().max()):.1e}")
    return {"no weights": by_hand(pipe, [(plain, 1.0)]), "Compel": theirs, "by hand": ours}


def sweep(pipe, args: Args) -> dict[str, Words]:
    """Embeddings of the prompt with several weights of one word."""
    before, after = (part.strip() for part in args.prompt.split(args.word))
    rows = {w: [(text, v) for text, v in ((before, 1.0), (args.word, w), (after, 1.0)) if text] for w in dict.fromkeys(args.sweep)}
    return {f"({args.word}){w:g}": by_hand(pipe, fragments) for w, fragments in rows.items()}


def draw(pipe, z: Words, args: Args) -> "Tensor":
    """n pictures of one prompt's embeddings: (n, 3, H, W) in [-1, 1] on the CPU."""
    from finetune_diffusers.models import fits, generators, to_images

    nothing = by_hand(pipe, [("", 1.0)])
    pooled = {"pooled_prompt_embeds": z.pooled, "negative_pooled_prompt_embeds": nothing.pooled} if z.pooled is not None else {}
    with fits(args.scheduler), enough_memory(args.device, "--n"):
        images = pipe(
            prompt_embeds=z.embeddings.expand(args.n, -1, -1), negative_prompt_embeds=nothing.embeddings.expand(args.n, -1, -1), num_inference_steps=args.steps,
            guidance_scale=args.guidance, generator=generators(args.seed, args.n), output_type="pt",
            **{name: vector.expand(args.n, -1) for name, vector in pooled.items()},
        ).images  # fmt: skip
    return to_images(images, args.scheduler)


if __name__ == "__main__":
    run(main, Args)
