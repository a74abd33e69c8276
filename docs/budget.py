"""What trainings cost, and what they reach: budget.csv as the pages budget.md and budget.zh.md, and new rows from run folders.

python docs/budget.py                                                          # writes both pages
python docs/budget.py runs/01_ddpm_mnist/mnist --machine "one H100" --merit "Fréchet distance 0.9 (0.7 to 1.1)"
"""

import argparse
import csv
import json
import re
import struct
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
COLUMNS = ("chapter", "training", "parameters", "steps", "batch", "minutes", "memory", "machine", "merit", "source")
TITLES = {
    "en": (
        "chapter",
        "training",
        "trained weights",
        "steps",
        "batch",
        "minutes",
        "peak memory",
        "machine",
        "figure of merit",
    ),
    "zh": ("章", "训练", "训练的权重数", "步数", "批量", "分钟", "内存峰值", "机器", "效果"),
}
COMMAND = """```sh
python docs/budget.py runs/01_ddpm_mnist/mnist --machine "one H100" --merit "Fréchet distance 0.9 (0.7 to 1.1)"
```

"""
HEADS = {
    "en": """# Time and memory

English · [中文](budget.zh.md)

What the trainings of the course cost, and what their models reach. Each row is one training that was run; brackets are 95 % intervals. The link of a row
leads to its commands and conditions. Minutes on a machine with other work are longer than on an idle one. A cell is empty where nothing was measured.

This page is written by `python docs/budget.py`. To add a row for a run of yours, give its folder and what you know of it:

""",
    "zh": """# 时间与内存

[English](budget.md) · 中文

课程中的训练要花多少时间和内存，模型达到什么效果。每一行是实际进行过的一次训练；括号里是 95 % 置信区间。每行的链接指向它的命令和条件。
机器忙于其他工作时，所用的时间比空闲时长。没有测量的地方留空。

本页由 `python docs/budget.py` 生成。要为你自己的训练添加一行，请给出它的文件夹和你所知道的情况：

""",
}
NUMBER = r"([\d.,]*\d)"
CHINESE: dict[str, dict[str, str]] = tomllib.loads((HERE / "budget.zh.toml").read_text(encoding="utf-8"))


def parameters(folder: Path) -> int:
    """The number of values in all weight files of a folder, from the heads of the .safetensors files."""
    total = 0
    for path in folder.rglob("*.safetensors"):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            tensors = json.loads(file.read(length))
        for name, tensor in tensors.items():
            if name != "__metadata__":
                count = 1
                for side in tensor["shape"]:
                    count *= side
                total += count
    return total


def row_of(run: Path, machine: str, merit: str) -> dict[str, str]:
    """The facts of a run folder: its settings, the last row of its log, its weights, and its results.json if it has one."""
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    results = run / "results.json"
    cost = json.loads(results.read_text(encoding="utf-8")).get("cost", {}) if results.exists() else {}
    return {
        "chapter": run.resolve().parent.name[1:2],
        "training": f"`{run.name}`",
        "parameters": str(cost.get("trained") or parameters(run / "model")),
        "steps": last["step"],
        "batch": str(config["batch_size"]),
        "minutes": f"{float(last['seconds']) / 60:.1f}",
        "memory": f"{cost['peak'] / 1e9:.2f} GB" if cost.get("peak") else "",
        "machine": machine,
        "merit": merit,
        "source": "",
    }


def page(rows: list[dict[str, str]], language: str = "en") -> str:
    """budget.md, or budget.zh.md"""
    lines = [TITLES[language], ["---"] * len(COLUMNS[:-1])]
    for row in rows:
        texts = row if language == "en" else row | {name: chinese(row[name], name) for name in CHINESE}
        cells = [
            f"{int(texts[name]):,}" if texts[name] and name in ("parameters", "steps") else texts[name]
            for name in COLUMNS[:-1]
        ]
        cells[1] = f"[{cells[1]}](../{row['source']})" if row["source"] else cells[1]
        lines.append(cells)
    return HEADS[language] + COMMAND + "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def chinese(text: str, column: str) -> str:
    """A cell in Chinese by budget.zh.toml, or as it is where that file does not know it, as in a row of yours."""
    for english, translation in CHINESE[column].items():
        if match := re.fullmatch(re.escape(english).replace(r"\{\}", NUMBER), text):
            return translation.format(*match.groups())
    return text


def read() -> list[dict[str, str]]:
    with (HERE / "budget.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, help="run folder of a training")
    parser.add_argument("--machine", default="", help="processor or GPU of the run")
    parser.add_argument("--merit", default="", help="figure of merit, with its interval")
    args = parser.parse_args()
    rows = read()
    if args.run:
        if missing := [name for name in ("config.json", "metrics.csv") if not (args.run / name).is_file()]:
            print(f"error: {args.run} is no run folder: it has no {' and no '.join(missing)}", file=sys.stderr)
            sys.exit(2)
        rows = sorted([*rows, row_of(args.run, args.machine, args.merit)], key=lambda row: row["chapter"])
        with (HERE / "budget.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    for name, language in (("budget.md", "en"), ("budget.zh.md", "zh")):
        (HERE / name).write_text(page(rows, language), encoding="utf-8")


if __name__ == "__main__":
    main()
