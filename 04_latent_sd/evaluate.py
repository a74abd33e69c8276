"""Measures whether images show what their captions say, and how much the autoencoder loses.

  python 04_latent_sd/evaluate.py                                                the shipped model
  python 04_latent_sd/evaluate.py --model runs/04_latent_sd/creatures-dishes --scales 1 2 3 5 8 --n 200
  python 04_latent_sd/evaluate.py --scales                                       the autoencoder alone

Autoencoder: the PSNR of the reconstructions of images that training never saw, for each data set, and the standard
deviation of their scaled latents, which the noise schedule expects to be 1.

Prompt adherence: as in chapter 2, with the same prompts and the same classifier, which sees 32 x 32 pixels. The
columns are explained in common/evaluate/prompt_accuracy.py. A prompt starts from the same noise at every scale. Beside
the two bounds explained there stands the upper bound that the autoencoder leaves: real images, encoded and decoded.
"""

from common.cli import run
from latent_sd.flags import EvaluationFlags as Args


def main(args: Args) -> None:
    from latent_sd.evaluation import evaluate_model

    evaluate_model(args)


if __name__ == "__main__":
    run(main, Args)
