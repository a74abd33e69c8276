"""Draw images of prompts, starting from noise or from a picture.

python 04_latent_sd/sample.py "番茄炒蛋"
python 04_latent_sd/sample.py "a creature" --n 8 --guidance 5 --negative "a creature on a sky blue background"
python 04_latent_sd/sample.py "一盘葱油生菜" --sweep 1,2,4,8
python 04_latent_sd/sample.py "a blue ghost creature" --image creature.png --strength 0.6
python 04_latent_sd/sample.py "a castle" --model path/to/stable-diffusion-v1-5 --n 1 --guidance 7.5 --sampler ddim:50
"""

from common.cli import run
from common.errors import UserError
from latent_sd.flags import LatentSampleFlags as Args


def main(args: Args) -> None:
    if not args.prompts:
        raise UserError(
            'give a prompt, for instance "番茄炒蛋" or "a red creature with bat wings"; "" samples without a prompt'
        )
    if args.strength is not None and args.image is None:
        raise UserError("--strength needs a picture to begin with; give it with --image")
    from latent_sd.sampling import draw_samples

    draw_samples(args)


if __name__ == "__main__":
    run(main, Args)
