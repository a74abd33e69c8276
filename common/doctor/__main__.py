from common.cli import run
from common.doctor.program import Args, main

if __name__ == "__main__":
    run(main, Args)
