"""Makes exercises.py from solutions.py: what stands between the lines START and END of a function is the solution."""

import ast
import re

from common.errors import UserError
from common.grade.grader import exercises_of
from common.io.files import write_atomically

START, END = "# --- solution", "# --- end"


def strip(source: str) -> str:
    """The text of solutions.py -> the text of exercises.py."""
    stub, number, name, inside = [], 0, None, False
    for place, line in enumerate(source.splitlines(), 1):
        if found := re.match(r"def (\w+)\(", line):
            name = found[1]
        if line.strip() == (START if inside else END):
            raise UserError(f"line {place}: '{START}' and '{END}' do not alternate")
        if line.strip() == START:
            number, inside = number + 1, True
            stub.append(line.replace(START, f'raise NotImplementedError("exercise {number}: {name}")'))
        elif line.strip() == END:
            inside = False
        elif not inside:
            stub.append(line)
    if inside:
        raise UserError(f"the last '{START}' has no '{END}'")
    return "\n".join(stub) + "\n"


def answered(text: str, names: set[str]) -> list[str]:
    """Which of the functions no longer end as the stub does, in `raise`."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError):
        return ["something, though not yet valid Python"]
    return [
        f.name
        for f in body
        if isinstance(f, ast.FunctionDef) and f.name in names and not isinstance(f.body[-1], ast.Raise)
    ]


def write_stub(chapter: str, overwrite: bool) -> None:
    """Write a chapter's exercises.py. One that holds answers is refused, unless it may be overwritten."""
    folder = exercises_of(chapter)
    path, stub = folder / "exercises.py", strip((folder / "solutions.py").read_text(encoding="utf-8"))
    names = set(re.findall(r'NotImplementedError\("exercise \d+: (\w+)"', stub))
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    if (kept := answered(old, names)) and not overwrite:
        raise UserError(
            f"{path} already answers {', '.join(kept)}; save a copy of it, then add --overwrite to start afresh"
        )
    write_atomically(path, lambda file: file.write(stub.encode()))
    print(f"{path}: {len(names)} exercises")
