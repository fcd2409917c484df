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
    "as enlarged images meet": "smoothed by the enlargement filter",
    "asks nobody for anything": "loads nothing from a server",
    "better peer": "the faster of Accelerate and Lightning",
    "blot out": "erase (cutout, random erasing)",
    "explains itself": "holds class names, preprocessing and result",
    "half of the inputs dropped": "dropout 0.5",
    "how a photograph is met": "preprocessing",
    "how a picture is met": "preprocessing",
    "is silent": "does not respond",
    "knows nothing of": "does not depend on",
    "labels without smoothing": "no label smoothing",
    "left aside": "skipped",
    "lever by lever": "ablation: one optimisation off at a time",
    "lie evenly": "evenly spaced",
    "meet again": "rendezvous again",
    "meeting point": "rendezvous",
    "meets nobody but itself": "forms a group of its own",
    "mirror images averaged": "flip TTA",
    "mistake of yours": "a user's error",
    "most certain": "most confident",
    "network that knows nothing": "network at chance",
    "nobody reads the results": "the pipe was closed",
    "pictures per second": "images per second",
    "right answers": "correct predictions, or top-1",
    "said goodbye": "closed its connections",
    "signal's size": "variance of activations",
    "starting noise": "initial weights",
    "the contenders": "the other training loops",
    "the house": "the code, or the package",
    "twice the rate": "twice the learning rate",
    "way of the data": "data flow",
    "what layers return": "features",
    "what training adds": "difference",
    "what training changed": "difference",
    "whole batch": "global batch",
    "worst mistakes": "worst errors",
}
"""Before and after: words that were in the documents or in --help, and the term of the field that replaced each."""


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
        for sentence in filter(None, re.split(r"(?<=[.!?])[)\"]?\s+(?=[A-Z0-9`\"(*])", words)):
            yield Sentence(path.relative_to(ROOT).as_posix(), sentence)


def house_words(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the words of TERMS that a file holds as whole words in any case, each with the term to write instead."""
    text = " ".join(path.read_text(encoding="utf-8").split())
    for word, term in TERMS.items():
        if re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE):
            yield word, term


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
