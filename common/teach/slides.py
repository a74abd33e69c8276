"""Make slides of a lesson: lesson.ipynb becomes NN.slides.html, for any browser.

  python -m common.teach.slides 01 --out slides
  python -m common.teach.slides all --out slides --assets node_modules      pages that need no network

A section of the lesson is a column of slides: its heading, first sentences and first formula, then a slide for each part,
for each question and for each figure. Figures have the sentence below them as their caption. The rest of the text is in
the speaker's notes (key S), so a change of the lesson changes the slides.

Pages load reveal.js and MathJax from a content delivery network. For a room without one, install both once, and name the
folder after --assets; what the pages need of it is copied beside them.

  npm install reveal.js@4.6.1 mathjax@3.2.2
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from common.cli import run


@dataclass(frozen=True)
class Args:
    chapter: tyro.conf.Positional[str]
    """The chapter's number: 01. Or all."""
    out: Path
    """Folder for the slides."""
    assets: Path | None = None
    """Folder node_modules with reveal.js and mathjax, which is copied; by default they are loaded from the network."""
    lang: Literal["en", "zh"] = "en"
    """Language of the lesson. zh: lesson.zh.ipynb."""


def main(args: Args) -> None:
    from common.teach.deck import write_decks

    for path in write_decks(args.chapter, args.out, args.assets, args.lang):
        print(path)


if __name__ == "__main__":
    run(main, Args)
