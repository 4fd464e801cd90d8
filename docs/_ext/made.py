"""What the pages take from the code and from measured results; ``make figures`` writes it into them.

A page marks the place: ``<!-- made: options -->`` … ``<!-- end -->``. The site is built with what is made anew; in
the repository the text stands between the marks, so that the pages read well there too, and a test compares it.
The longest blocks are left empty there.
"""

import re
from pathlib import Path

import figures  # noqa: F401  # its blocks are known once it is imported
import reference  # noqa: F401  # the same
from block import MAKERS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SITE_ONLY = ("layers", "scripts", "targets")
_BLOCK = re.compile(r"<!-- made: ([a-z-]+) -->\n(.*?)<!-- end -->", re.DOTALL)


def fresh(text: str, skip: tuple[str, ...] = ()) -> str:
    """A page's text with its blocks made anew, but those to skip."""

    def make(found: re.Match[str]) -> str:
        if found[1] in skip:
            return found[0]
        body = "\n".join(MAKERS[found[1]]())
        return f"<!-- made: {found[1]} -->\n{body}\n<!-- end -->"

    return _BLOCK.sub(make, text)


def main() -> None:
    """Write the blocks of all pages."""
    for page in PAGES:
        text = page.read_text()
        if (made := fresh(text, SITE_ONLY)) != text:
            page.write_text(made)
            print(f"{page.relative_to(ROOT)} is new")


if __name__ == "__main__":
    main()
