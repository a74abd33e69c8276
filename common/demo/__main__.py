from common.cli import run
from common.demo.program import Args, main

if __name__ == "__main__":
    run(main, Args)
