"""Captions to numbers: a small tokenizer of CLIP's kind, trained on the captions, in English and Chinese.

A text is cut into words, a word into UTF-8 bytes, and then neighbours are joined by a list of merges, the first in the
list first (byte-pair encoding: Sennrich et al. 2016; Radford et al. 2021). So a frequent word is one token, a word
never seen falls into pieces, and nothing is ever outside the vocabulary. </w> marks the last piece of a word.

Chinese writes no spaces, so to CLIP a whole clause is one word; merges learned on it would make one token of "a red
round little monster", and the network could never meet the red in it elsewhere.
Here a Chinese character is always one token.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import tokenizers
import torch
from tokenizers import Regex, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Tensor

from common.errors import UserError, explain
from common.io.files import read_json, write_atomically, write_json

Merge = tuple[str, str]

# One thread: captions are short, and learning merges on several is slower; it also keeps the library's threads out of
# data workers.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

BOS, EOS, END = "<|startoftext|>", "<|endoftext|>", "</w>"
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())  # one printable letter for each of the 256 bytes
CUT = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # CLIP's words
CHINESE = "\u3000-\u9fff\uff00-\uffef"  # characters, kana and their punctuation: three bytes each
WORD = re.compile(rf"[{CHINESE}]|[^\W\d_{CHINESE}]+")  # a word, or a Chinese character


class Tokenizer:
    """tokenizer(captions) -> (B, length) int64, each row: begin, the caption, end, padding.

    backend  a tokenizer of the `tokenizers` library; adds its own begin and end
    length   tokens in a row, begin and end included; what is longer is cut
    pad      the token to fill up with
    """

    def __init__(self, backend: tokenizers.Tokenizer, length: int, pad: str = EOS):
        self.backend, self.length, self.pad = backend, length, pad
        pad_id = backend.token_to_id(pad)
        if pad_id is None:
            raise UserError(f"the padding token '{pad}' of this tokenizer is not in its vocabulary")
        self.pad_id: int = pad_id
        backend.enable_truncation(length)
        backend.enable_padding(length=length, pad_id=pad_id, pad_token=pad)

    def __call__(self, captions: Sequence[str]) -> Tensor:
        if isinstance(captions, str):
            raise TypeError(
                "give a list of captions; a lone string would be read as one caption for each of its letters"
            )
        return torch.tensor([encoding.ids for encoding in self.backend.encode_batch(list(captions))]).reshape(
            -1, self.length
        )

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return self.backend.get_vocab_size()

    def id(self, token: str) -> int | None:
        return self.backend.token_to_id(token)

    # ------------------------------------------------------------------------------------------- what to tell the user

    def unknown(self, caption: str) -> list[str]:
        """Words, and Chinese characters, that have no token of their own, in order."""
        return [word for word in dict.fromkeys(WORD.findall(caption)) if not self._is_token(word)]

    def _is_token(self, word: str) -> bool:
        tokens = [t for t in self.backend.encode(word, add_special_tokens=False).tokens if t != self.pad]
        return len(tokens) == 1 and tokens[0] != getattr(self.backend.model, "unk_token", None)

    def rest(self, caption: str) -> str:
        """What of the caption lies beyond the length and is not read; '' if nothing."""
        encoding = self.backend.encode(caption)
        end = max(stop for _, stop in encoding.offsets)
        return caption[end:].strip() if encoding.overflowing else ""

    def remarks(self, caption: str) -> list[str]:
        """Warnings for the user about a prompt: it is empty, is cut off, or holds unknown words."""
        if not caption.strip():
            return ["the prompt is empty: the picture will be unconditional"]
        unknown, rest = self.unknown(caption), self.rest(caption)
        remarks = (
            [f"unknown words: {', '.join(unknown)} (spelled in pieces, so they may mean little)"] if unknown else []
        )
        return remarks + (
            [f"the prompt has more than {self.length} tokens and is cut before '{rest}'"] if rest else []
        )

    # ---------------------------------------------------------------------------------------------------------- files

    def save(self, folder: Path) -> None:
        """Write the files of a Stable Diffusion tokenizer,
        which CLIPTokenizer.from_pretrained(folder) opens. CLIP's kind only.
        """
        model = json.loads(self.backend.to_str())["model"]
        merges = "".join(f"{a} {b}\n" for a, b in model["merges"])
        settings = {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": self.length,
            "bos_token": BOS,
            "eos_token": EOS,
            "unk_token": EOS,
            "pad_token": self.pad,
            "do_lower_case": True,
            "add_prefix_space": False,
        }
        write_json(folder / "vocab.json", model["vocab"])
        write_atomically(folder / "merges.txt", lambda file: file.write(f"#version: 0.2\n{merges}".encode()))
        write_json(folder / "tokenizer_config.json", settings)


def load_tokenizer(folder: Path, longest: int = 77) -> Tokenizer:
    """Open the folder of any CLIP tokenizer; a row is as long as the folder says, but at most `longest`."""
    settings = read_json(folder / "tokenizer_config.json")
    kind = settings.get("tokenizer_class", "CLIPTokenizer")
    if kind not in ("CLIPTokenizer", "CLIPTokenizerFast"):
        raise UserError(f"{folder} holds a tokenizer of kind {kind!r}; expected CLIPTokenizer")
    pad = settings.get("pad_token") or EOS
    try:
        length = min(settings.get("model_max_length", longest), longest)
        return Tokenizer(clip_backend(*read_merges(folder)), length, pad if isinstance(pad, str) else pad["content"])
    except UserError:
        raise
    except Exception as problem:  # the tokenizers library knows only Exception
        raise UserError(
            f"the tokenizer in {folder} cannot be opened as that of a CLIP ({explain(problem)})"
        ) from problem


def read_merges(folder: Path) -> tuple[dict[str, int], list[Merge]]:
    """The vocabulary and the merges of a tokenizer's folder, in either of its layouts."""
    if (folder / "tokenizer.json").exists():
        model = read_json(folder / "tokenizer.json")["model"]
        return model["vocab"], [
            tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]
        ]
    if not (folder / "merges.txt").exists():
        raise UserError(f"{folder} holds no tokenizer: neither tokenizer.json nor vocab.json and merges.txt are there")
    return BPE.read_file(str(folder / "vocab.json"), str(folder / "merges.txt"))


# ------------------------------------------------------------------------------------------------------------ building


def clip_backend(vocab: dict[str, int], merges: list[Merge]) -> tokenizers.Tokenizer:
    """CLIP's way from text to ids, as in `transformers.CLIPTokenizer`."""
    backend = tokenizers.Tokenizer(
        BPE(vocab=vocab, merges=merges, end_of_word_suffix=END, continuing_subword_prefix="", unk_token=EOS)
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    split_words = pre_tokenizers.Split(Regex(CUT), behavior="removed", invert=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split_words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.post_processor = processors.RobertaProcessing(
        (EOS, vocab[EOS]), (BOS, vocab[BOS]), trim_offsets=False, add_prefix_space=False
    )
    backend.add_special_tokens([BOS, EOS])
    return backend


def train_tokenizer(captions: Iterable[str], length: int = 64, size: int = 4096, min_count: int = 2) -> Tokenizer:
    """Learn a vocabulary from captions; the same captions, in whatever order, give the same one.

    length     tokens in a row; a Chinese character takes one, and so does an English word that is frequent enough
    size       how many tokens there may be for languages with spaces
    min_count  how often a character, or a pair of pieces, must occur to become a token
    """
    normalise = clip_backend(vocabulary([]), []).normalizer.normalize_str
    captions = [normalise(caption) for caption in captions]
    characters = Counter(c for caption in captions for c in re.findall(f"[{CHINESE}]", caption))
    spelled = [merge for c in sorted(characters) if characters[c] >= min_count for merge in spell(c)]
    others = learn_merges([re.sub(f"[{CHINESE}]", " ", caption) for caption in captions], size, min_count)
    merges = list(dict.fromkeys([*spelled, *others]))
    return Tokenizer(clip_backend(vocabulary(merges), merges), length)


def spell(character: str) -> Iterator[Merge]:
    """The merges that make one token of a character's bytes, inside a word and at its end."""
    word = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(character)[0][0]
    for i in range(1, len(word)):
        yield word[:i], word[i]
    yield word[:-1], word[-1] + END


def learn_merges(texts: Sequence[str], size: int, min_count: int) -> list[Merge]:
    """Byte-pair encoding: join the most frequent pair of neighbours, again and again.

    Of equally frequent pairs the trainer takes that with the smaller numbers, and it numbers a letter at the end of a
    word when it comes upon one, in the order of a hash table: differently in every process. Declared beforehand, as
    special tokens (which are numbered first), they have the same numbers always;
    a run that is resumed must find its own tokens again.
    """
    learner = clip_backend(vocabulary([]), [])
    trainer = BpeTrainer(
        vocab_size=size,
        min_frequency=min_count,
        end_of_word_suffix=END,
        continuing_subword_prefix="",
        initial_alphabet=LETTERS,
        special_tokens=vocabulary_of_letters(),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    return [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]


def vocabulary_of_letters() -> list[str]:
    """Every byte inside a word, and every byte at its end."""
    return [*LETTERS, *(letter + END for letter in LETTERS)]


def vocabulary(merges: list[Merge]) -> dict[str, int]:
    """CLIP's: every byte inside a word, every byte at its end, what the merges make, begin and end."""
    tokens = [*vocabulary_of_letters(), *(a + b for a, b in merges), BOS, EOS]
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}
