"""Look at this machine, or at a training run: for each subject it says what is fine, and what to do about the rest.

  python -m common.doctor                                          this machine, in about ten seconds
  python -m common.doctor --run runs/01_ddpm_mnist/mnist           a training run: its log, weights and samples
  python -m common.doctor --practice dark --out runs/practice/1    a training that is ill on purpose, to practise on
  python -m common.doctor --lang zh                                in Chinese

The exit code is 0 where nothing is wrong, 1 where something was found, and 2 for a command that cannot be carried out.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from common.grade.marking.messages import Language, language, translator


@dataclass(frozen=True)
class Args:
    run: Path | None = None
    """Run folder to look at, instead of the machine."""
    practice: str | None = None
    """Name of a fault to train a small network with; "list" shows the names."""
    out: Path | None = None
    """Run folder of --practice; by default a new one below runs/."""
    data_dir: Path = Path("data")
    """Folder of local copies of data sets."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1 or mps."""
    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, or the number of free cores."""
    lang: Language | None = None
    """Language of the findings; by default Chinese where the locale is (LC_ALL, LC_MESSAGES, LANG)."""


def main(args: Args) -> None:
    from common.doctor.consultation import consult

    lang, folder = language(args.lang), Path(__file__).parent
    say = translator(lang, folder, few=0)  # findings are short, and all are known
    try:
        code = consult(args.run, args.practice, args.out, args.data_dir, args.device, say)
    except UserError as problem:
        raise UserError(translator(lang, folder)(str(problem))) from problem
    if code:
        sys.exit(code)
