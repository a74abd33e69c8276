from common.claims.program import Args, main
from common.cli import run

if __name__ == "__main__":
    run(main, Args)
