from common.cli import run
from common.grade.program import Args, main

if __name__ == "__main__":
    run(main, Args)
