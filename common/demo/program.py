"""Open a page in the browser that plays with the shipped models, in English and Chinese.

python -m common.demo                        http://127.0.0.1:7860; stop it with Ctrl-C
python -m common.demo --port 8000 --open     another port, and open the browser
python -m common.demo --share-on-network     also for other computers of the network (read the warning)

The page needs no network: digits out of noise, points in the plane, creatures from a prompt, your own picture, and a
film from the name of a dish.
"""

from dataclasses import dataclass
from typing import Annotated

from common.io.ranges import Range


@dataclass(frozen=True)
class Args:
    port: Annotated[int, Range(1, 65535, 7860)] = 7860
    """Port of the page; if it is taken, the next free one."""
    open: bool = False
    """Open the page in the browser."""
    share_on_network: bool = False
    """Let every computer of the network use the page, without a password. By default only this computer can."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or the number of free cores."""


def main(args: Args) -> None:
    from common.demo.server import serve

    serve(args.port, args.open, args.share_on_network)
