"""Evaluate the models of this chapter: recognition of drawn dishes, visibility of edges, drift, direction of camera moves.

  python 06_inpaint_gif/evaluate_gif.py                                    all four, for the shipped models
  python 06_inpaint_gif/evaluate_gif.py --only holes --engines inpaint repaint reflect --n 100
  python 06_inpaint_gif/evaluate_gif.py --only dishes --dish runs/06_inpaint_gif/text2dish-dishes --guidance 3

dishes  pictures of every dish of the menu, classified by the image encoder of a CLIP, which the drawing model does not
        use
holes   test pictures with the holes of camera moves: visibility of the edges, compared with untouched pictures
drift   four keyframes of a camera that moves back, each painted from the ones before: how far their colours and
        contrast are from those of the picture, compared with true scenes
moves   a film of each move: the number of frames in which phase correlation measures the requested direction
"""

from common.cli import run
from inpaint_gif.evaluation.flags import GIFEvaluationFlags as Args


def main(args: Args) -> None:
    from inpaint_gif.evaluation.gif_report import evaluate

    evaluate(args)


if __name__ == "__main__":
    run(main, Args)
