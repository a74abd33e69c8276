"""The list of claims, and the tables that pages make of it and of results files."""

from common.claims import chinese, repetition, results
from common.claims.claim import Claim, read_claims
from common.claims.repetition import Repetition
from common.claims.results import ROOT
from common.errors import UserError


def answer(run: int | None, seed: int | None = None, record: bool = False, tables: bool = False) -> int:
    """Do what the flags ask for. Returns the exit code of a command that was run, else 0."""
    claims = read_claims()
    if run is None and (record or seed is not None):
        raise UserError(f"--{'record' if record else 'seed'} needs --run with the number of a claim")
    if run is not None:
        if not 1 <= run <= len(claims):
            raise UserError(f"there is no claim {run}; choose 1 to {len(claims)}")
        code = repetition.repeat(run, claims[run - 1], seed, record)
        if record and not code:
            write_tables()
        elif not code and not claims[run - 1].results:
            print(f"\nto compare with: {block(claims[run - 1])}")
        return code
    if tables:
        write_tables()
    else:
        for position, claim in enumerate(claims, 1):
            print(f"{position:2}  {block(claim)}\n")
    return 0


def block(claim: Claim) -> str:
    """A claim in a few lines: title, verdict, measured values with their intervals, source, commands."""
    named = {
        "verdict": [claim.verdict],
        "measured": [f"{value.what}: {value.shown()}" for value in claim.values] or ["nothing yet"],
        "repeated": repetition.summaries(claim),
        "source": [claim.source],
        "command": [f"python {command}" for command in claim.commands],
    }
    lines = [f"    {'' if k else name:9} {text}" for name, texts in named.items() for k, text in enumerate(texts)]
    return "\n".join([f"{claim.title} (chapter {claim.chapter}; docs/claims.md#{claim.anchor})", *lines])


# ----------------------------------------------------------------------------------------------------------- the tables


def write_tables() -> None:
    """Write all tables that are made from files into their pages, and print which pages have changed."""
    for path in results.write_tables(made_tables()):
        print(path.relative_to(ROOT))


def made_tables() -> dict[tuple[str, str], str]:
    """{(page, name): Markdown}"""
    page, translated, tables = "docs/claims.md", "docs/claims.zh.md", results.read_tables()
    made = {
        (page, "claims"): claim_table(read_claims()),
        (page, "repeated"): repetition_table(repetition.read_repetitions()),
        (translated, "claims"): chinese.claim_table(read_claims()),
        (translated, "repeated"): chinese.repetition_table(map(repetition.shown, repetition.read_repetitions())),
    }
    return made | {(table.page, table.name): table.text() for table in tables}


def claim_table(claims: list[Claim]) -> str:
    lines = ["| claim | chapter | verdict |", "|---|---|---|"]
    return "".join(
        f"{line}\n"
        for line in lines
        + [f"| [{each.title}](#{each.anchor}) | {each.chapter} | {each.verdict} |" for each in claims]
    )


def repetition_table(rows: list[Repetition]) -> str:
    cells = [list(repetition.shown(row).values()) for row in rows]
    lines = [
        ["value", "documented", "repeated", "seed", "agrees", "inside the documented interval"],
        ["---"] * 6,
        *cells,
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
