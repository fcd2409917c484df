"""The documents that users read, and the commands in them."""

import re
import shlex
from pathlib import Path

from places import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
HEADERS = [*sorted((ROOT / "launch").glob("*.s*")), *sorted((ROOT / "alexnet_dist/config/recipes").glob("*.yaml"))]
OURS = {"train.py", "alexnet-dist", "accelerate", "python", ".venv/bin/python", "make", "sbatch"}
"""First words of commands that a test looks into, besides paths in launch/ and benchmarks/."""
NOT_OURS = {"docker", "hf", "kubectl", "pip", "pytest", "source", "torchrun", "wandb", "./distributed_train.sh"}
"""First words of commands that are another program's: no test can parse them."""
OUTPUT = re.compile(r"(ok|warning|error) +\w|\d+ errors, ")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
VARIABLE = re.compile(r"[A-Z_]+=\S+$")


def code_lines(path: Path) -> list[str]:
    """Return the commands in a page's blocks of code, or of the examples in a file's header, without comments."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        blocks = [body for language, body in FENCED.findall(text) if language in ("", "bash")]
        blocks += re.findall(r"^    (?!options:|  )(\S.*)$", FENCED.sub("", text), re.MULTILINE)
    else:
        blocks = re.findall(r"^#     (\S.*)$", text, re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    cut = (re.sub(r"(^|\s+)# .*$", "", line).strip().removeprefix("$ ") for line in lines)
    return [line for line in cut if line and not OUTPUT.match(line)]


def inline_commands(path: Path) -> list[str]:
    """Return the commands within a page's sentences and tables: code of several words whose first is a command's."""
    text = FENCED.sub("", path.read_text(encoding="utf-8"))
    found = [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]
    return [code.replace("\\|", "|") for code in found if len(bare(code)) > 1 and is_ours(bare(code)[0])]


def bare(line: str) -> list[str]:
    """Return the words of a command without the variables before it."""
    try:
        words = shlex.split(line)
    except ValueError:  # a quotation mark of a sentence
        words = line.split()
    while words and VARIABLE.match(words[0]):
        words = words[1:]
    return words


def is_ours(word: str) -> bool:
    """Tell whether a command's first word is one that a test looks into."""
    return word in OURS or re.fullmatch(r"launch/\w+\.sh|benchmarks/\w+\.(py|sh)", word) is not None
