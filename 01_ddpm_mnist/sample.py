"""Generate images with a trained model: the shipped one, a run of yours, or any diffusers folder.

python 01_ddpm_mnist/sample.py --n 64
python 01_ddpm_mnist/sample.py --model runs/01_ddpm_mnist/mnist --sampler ddpm:1000 --gif
"""

from common.cli import run
from ddpm_mnist.flags import UnconditionalSampleFlags as Args


def main(args: Args) -> None:
    from ddpm_mnist.sampling import generate  # brings torch along, which --help should not wait for

    generate(args)


if __name__ == "__main__":
    run(main, Args)
