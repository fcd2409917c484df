"""List the longest sentences of README.md, CONTRIBUTING.md and docs/, and words that stand for a term of the field.

python docs/site/words.py          the twenty longest
python docs/site/words.py --all    every one above LONGEST words, and every word of TERMS
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
LONGEST = 25
"""Words that a sentence may have."""
TERMS = {
    "mirror images averaged": "flip TTA",
    "right answers": "top-1",
    "pictures per second": "images per second",
    "whole batch": "global batch",
    "what training adds": "difference",
}
"""House words that were in the documents, and the field's term that stands there now."""


class Sentence(NamedTuple):
    """A sentence of a document, without marks of Markdown."""

    where: str
    text: str

    @property
    def words(self) -> int:
        """Return the number of words; a path, a flag or a formula in backticks is one."""
        return len(re.sub(r"`[^`]*`", "x", self.text).split())


def documents() -> list[Path]:
    """Return the Markdown files that users and developers read, CHANGELOG.md and tables of results left out."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def sentences(path: Path) -> Iterator[Sentence]:
    """Yield the sentences of a Markdown file; code, headings and rows of tables are none."""
    text = re.sub(r"```.*?```|<!--.*?-->|~~~.*?~~~", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[*-]|\d+\.) )", text):
        if block.lstrip().startswith(("|", "#", "!!!", ":::")):
            continue
        words = " ".join(re.sub(r"^\s*(?:[*-]|\d+\.) ", "", block).replace("**", "").split())
        for sentence in re.split(r"(?<=[.!?])[)\"]?\s+(?=[A-Z0-9`\"(*])", words):
            yield Sentence(path.relative_to(ROOT).as_posix(), sentence)


def house_words(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the words of TERMS that a file holds, each with the term to write instead."""
    text = " ".join(path.read_text(encoding="utf-8").split())
    yield from ((word, term) for word, term in TERMS.items() if word in text)


def main() -> None:
    """Print the list."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="all above the limit, and house words")
    every = parser.parse_args().all
    found = sorted((each for path in documents() for each in sentences(path)), key=lambda each: -each.words)
    for each in [each for each in found if each.words > LONGEST] if every else found[:20]:
        print(f"{each.words:3} {each.where}: {each.text}")
    for path in documents() if every else ():
        for word, term in house_words(path):
            print(f"{path.relative_to(ROOT)}: '{word}'; the field says {term}")


if __name__ == "__main__":
    main()
