"""Draw images of prompts.

python 02_cfg_pokemon/sample.py "a red creature with bat wings"
python 02_cfg_pokemon/sample.py "一只绿色的草属性小怪兽" --n 16 --guidance 5 --negative "bat wings"
python 02_cfg_pokemon/sample.py "a blue ghost creature" --sweep 0,1,2,4,8
"""

from cfg_pokemon.flags import PixelSampleFlags as Args
from common.cli import run
from common.errors import UserError


def main(args: Args) -> None:
    if not args.prompts:
        raise UserError('give a prompt, for instance "a red creature with bat wings"; "" samples without a prompt')
    from cfg_pokemon.sampling import draw_samples

    draw_samples(args)


if __name__ == "__main__":
    run(main, Args)
