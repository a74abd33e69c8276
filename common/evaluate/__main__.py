from common.cli import run
from common.evaluate.evaluator import Args, main

if __name__ == "__main__":
    run(main, Args)
