"""Grade a submission in Gradescope's container. run_autograder of the zip file that common.handout writes starts this.

  python -m common.teach.gradescope --folder /autograder

Read from the folder: submission/, submission_metadata.json (who handed in when, and when it was due) and
source/autograder.json (the teacher's settings). Written: results/results.json.
"""

from dataclasses import dataclass
from pathlib import Path

from common.cli import run


@dataclass(frozen=True)
class Args:
    folder: Path = Path("/autograder")
    """Gradescope's folder."""


def main(args: Args) -> None:
    from common.teach.autograder import grade_submission

    print(grade_submission(args.folder))


if __name__ == "__main__":
    run(main, Args)
