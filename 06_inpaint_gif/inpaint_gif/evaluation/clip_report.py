"""The tables of evaluate_clip.py."""

from collections.abc import Sequence
from pathlib import Path

from common.cli import writable_folder
from common.data import load
from common.errors import UserError
from common.evaluate.distances import Estimate
from common.io.tables import write_csv
from inpaint_gif.clip.dish_names import parse_dish_name
from inpaint_gif.clip.model import ChineseCLIP, load_clip
from inpaint_gif.clip.retrieval import RetrievalAccuracy, caption_queries, evaluate_dishes, retrieval_accuracy
from inpaint_gif.clip.trainer import with_chinese_captions


def evaluate(
    name: str, backend: str, data: str, data_dir: Path, n: int, ask: Sequence[str], out: Path | None, device: str
) -> None:
    """Print the accuracies of a CLIP and write them to `out`/retrieval.csv; with `ask` only print the dishes nearest to these names.

    name     what load_clip opens
    n        images of each split
    """
    if ask and out:
        raise UserError("--ask measures nothing, so there is nothing to write to --out; leave one of them out")
    out = writable_folder(out) if out else None
    clip = load_clip(name, backend, device)
    print(
        f"{name} through {clip.backend}: {clip.dim} dimensions, {clip.size} x {clip.size} pixels, temperature {1 / clip.scale:.3f}"
    )
    if ask:
        print_nearest(clip, ask)
        return
    results = measure(clip, data, data_dir, n)
    width = max(map(len, results))
    print(f"{'':{width}}   asked  top1                  top5")
    for what, found in results.items():
        print(f"{what:{width}}  {found.queries:6,}  {percent(found.top1)}  {percent(found.top5)}")
    if out:
        settings = {"n": n, "data": data, "clip": name, "backend": clip.backend}
        rows = [
            {"asked": what, "queries": f.queries, "choices": f.choices}
            | f.top1.columns("top1")
            | f.top5.columns("top5")
            | settings
            for what, f in results.items()
        ]
        print(write_csv(out / "retrieval.csv", rows))


def measure(clip: ChineseCLIP, data: str, data_dir: Path, n: int) -> dict[str, RetrievalAccuracy]:
    """All accuracies on the drawn dishes, or on the test split of any captioned set."""
    if data == "dishes":
        size = max(16, min(clip.size, 256))
        return evaluate_dishes(clip, {split: load("dishes", size, split=split, n=n) for split in ("test", "heldout")})
    test, rest = (
        with_chinese_captions(load(data, clip.size, data_dir, split, channels=3)) for split in ("test", "train")
    )
    known = {caption: (caption,) for caption in dict.fromkeys(test.captions + rest.captions)}
    queries = caption_queries(clip, test.first(min(n, len(test))), known)
    return {f"pictures of {data}, {len(known)} captions": retrieval_accuracy(*queries)}


def print_nearest(clip: ChineseCLIP, names: Sequence[str]) -> None:
    """The dishes nearest to each name, and the remarks about it."""
    for name in names:
        query = parse_dish_name(clip, name)
        print(f"{query.text}: " + "、".join(f"{dish} ({cosine:.2f})" for dish, cosine in query.nearest))
        for remark in query.remarks:
            print(f"  {remark}")


def percent(value: Estimate) -> str:
    """ " 91.5 % (89.8 to 93.1)" """
    return f"{100 * value.value:5.1f} % ({100 * value.low:.1f} to {min(100.0, 100 * value.high):.1f})".ljust(22)
