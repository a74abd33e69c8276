from common.cli import run
from common.evaluate.program import Args, main

if __name__ == "__main__":
    run(main, Args)
