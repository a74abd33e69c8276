"""Keep the links of derivations.md and derivations.zh.md to lines of code true. A link quotes its line:

[`x = a + b`](../common/diffusion/samplers.py#L54)

python docs/link_code.py          # writes the number of the line that holds the quoted code now
"""

import re
from pathlib import Path

PAGES = [Path(__file__).with_name(name) for name in ("derivations.md", "derivations.zh.md")]
LINK = re.compile(r"\[`([^`\n]+)`\]\(([\w./]+\.py)#L(\d+)\)")


def relinked(text: str, folder: Path) -> tuple[str, list[str]]:
    """The page with the right line numbers, and the quoted lines that no file holds. folder: that of the page"""
    lost = []

    def line_of(match: re.Match) -> str:
        code, name, old = match.groups()
        path = folder / name
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        places = [number for number, line in enumerate(lines, 1) if line.strip() == code]
        if not places:
            lost.append(f"{name}: {code}")
            return match[0]
        return f"[`{code}`]({name}#L{min(places, key=lambda place: abs(place - int(old)))})"

    return LINK.sub(line_of, text), lost


if __name__ == "__main__":
    for page in PAGES:
        text, lost = relinked(page.read_text(encoding="utf-8"), page.parent)
        page.write_text(text, encoding="utf-8")
        print(*(f"{page.name}: not found: {each}" for each in lost), sep="\n", end="\n" if lost else "")
