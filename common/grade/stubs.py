"""What learners get: exercises.py, made from solutions.py, and the hints of hints.py.

In a function of solutions.py, what stands between the lines START and END is the solution. Learners get an exception in
its place, or the lines after GIVEN, which make the function a program with a fault to find:

    # --- solution
    return 2 * x
    # --- given
    #| return 3 * x
    # --- end
"""

import ast
import re
import runpy
from pathlib import Path

from common.errors import UserError
from common.grade.chapter import exercises_of
from common.grade.marking.messages import Language, language, translator
from common.io.files import read_json, write_atomically

START, GIVEN, END = "# --- solution", "# --- given", "# --- end"
NEXT = {None: (START,), START: (GIVEN, END), GIVEN: (END,)}  # the markers that may follow a marker
CODE = "#|"  # what each line of a given program begins with
STEPS = ("a question", "a hint", "a line of code")


def strip(source: str) -> str:
    """The text of solutions.py -> the text of exercises.py."""
    stub: list[str] = []
    names: list[str] = []
    name, marker = "", None
    for place, line in enumerate(source.splitlines(), 1):
        text = line.strip()
        if found := re.match(r"def (\w+)\(", line):
            name = found[1]
        if text in (START, GIVEN, END):
            if text not in NEXT[marker]:
                raise UserError(
                    f"line {place}: '{START}', '{GIVEN}' (which may be absent) and '{END}' do not alternate"
                )
            if text == START and names[-1:] != [name]:
                names.append(name)
            elif marker == START and text == END:
                stub.append(line.replace(END, f'raise NotImplementedError("exercise {len(names)}: {name}")'))
            marker = None if text == END else text
        elif marker == GIVEN:
            indent, found_code, code = line.partition(CODE)
            if indent.strip() or not found_code:
                raise UserError(f"line {place}: each line between '{GIVEN}' and '{END}' begins with '{CODE}'")
            stub.append((indent + code.removeprefix(" ")).rstrip())
        elif marker is None:
            stub.append(line)
    if marker:
        raise UserError(f"the last '{START}' has no '{END}'")
    return "\n".join(stub) + "\n"


def exercise_names(source: str) -> list[str]:
    """The functions of solutions.py that learners write or repair, in the order of the exercises."""
    names: list[str] = []
    name = ""
    for line in source.splitlines():
        if found := re.match(r"def (\w+)\(", line):
            name = found[1]
        elif line.strip() == START and names[-1:] != [name]:
            names.append(name)
    return names


def names_of(folder: Path) -> list[str]:
    """The exercises of a chapter's exercises/, which in a handout has no solutions.py."""
    if (folder / "solutions.py").is_file():
        return exercise_names((folder / "solutions.py").read_text(encoding="utf-8"))
    return [each["name"] for each in read_json(folder / "exercises.json")["exercises"]]


def answered(text: str, stub: str, names: list[str]) -> list[str]:
    """Which of the functions hold code of the learner: neither the stub's, nor one that ends in `raise`."""
    try:
        mine, given = statements(text), statements(stub)
    except (SyntaxError, ValueError):
        return ["something, though not yet valid Python"]
    return [
        name
        for name in names
        if name in mine and mine[name] != given[name] and not mine[name][-1].startswith("Raise(")
    ]


def statements(text: str) -> dict[str, list[str]]:
    """{function: its statements as syntax trees}, without the docstring and without regard to comments and layout."""
    functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    found = {function.name: [ast.dump(node) for node in function.body] for function in functions}
    return {f.name: found[f.name][1 if ast.get_docstring(f) else 0 :] or [""] for f in functions}


def write_stub(chapter: str, overwrite: bool) -> None:
    """Write a chapter's exercises.py. One that holds answers is refused, unless it may be overwritten."""
    folder = exercises_of(chapter)
    if not (folder / "solutions.py").is_file():
        raise UserError(f"this copy of the course has no solutions; {folder / 'exercises.json'} holds the blank file")
    source = (folder / "solutions.py").read_text(encoding="utf-8")
    path, stub, names = folder / "exercises.py", strip(source), exercise_names(source)
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    if (kept := answered(old, stub, names)) and not overwrite:
        raise UserError(
            f"{path} already answers {', '.join(kept)}; save a copy of it, then add --overwrite to start afresh"
        )
    write_atomically(path, lambda file: file.write(stub.encode()))
    print(f"{path}: {len(names)} exercises")


# --------------------------------------------------------------------------------------------------------------- hints


def print_hint(chapter: str, number: int, step: int, lang: Language = "en") -> None:
    """Print one step of the hint to an exercise: a question, a hint, or a line of code."""
    folder = exercises_of(chapter)
    names = names_of(folder)
    hints = authors(folder).get("HINTS")
    if hints is None:
        raise UserError(f"the exercises of {folder.parent.name} have no hints yet; their docstrings say what to write")
    if number > len(names):
        raise UserError(f"{folder.parent.name} has no exercise {number}; give a number from 1 to {len(names)}")
    name = names[number - 1]
    if name not in hints:
        raise UserError(f"exercise {number}, {name}, has no hint yet; its docstring says what to write")
    say = translator(lang, folder)
    print(say(f"Exercise {number}, {name}: {STEPS[step - 1]} (step {step} of {len(STEPS)})"))
    print(f"\n{say(hints[name][step - 1])}")
    if step < len(STEPS):
        command = f"python -m common.grade {folder.parent.name[:2]} --hint {number} --step {step + 1}"
        command += f" --lang {lang}" if lang != language() else ""
        print("\n" + say(f"For {STEPS[step]}: {command}"))


def authors(folder: Path) -> dict:
    """The names that hints.py of an exercises folder defines: HINTS and TIERS. Empty where there is no such file."""
    path = folder / "hints.py"
    return runpy.run_path(str(path)) if path.is_file() else {}
