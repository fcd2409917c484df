"""Build the documentation site and check it: no warning, no dead link or anchor, nothing that needs a network.

    make docs       # then open build/docs/site/index.html

Pages are docs/*.md, CONTRIBUTING.md and CHANGELOG.md. They are copied to build/docs/pages. There marks are replaced by
tables of options, and links to other files of the repository by links to copies of them. Zensical makes the site, and
docs/site/check_links.py checks it.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import check_links
import option_tables

ROOT = Path(__file__).parents[2]
HERE = ROOT / "docs" / "site"
TARGET = ROOT / "build" / "docs"
PAGES = {
    **{path.relative_to(ROOT).as_posix(): path.name for path in sorted((ROOT / "docs").glob("*.md"))},
    "README.md": "index.md",  # links to it; the page itself is docs/index.md
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""The page of each document, by its path in the repository."""
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")
"""A link to another file: its mark if it is a picture, its text, its path and its anchor."""


def assemble(target: Path) -> None:
    """Write all that Zensical reads into a new folder: its configuration and the pages."""
    shutil.rmtree(target, ignore_errors=True)
    pages = target / "pages"
    pages.mkdir(parents=True)
    shutil.copy(HERE / "zensical.toml", target)
    for name in ("style.css", "iframe-worker.js"):
        shutil.copy(HERE / name, pages)
    for path, page in PAGES.items():
        if path != "README.md":
            text = option_tables.filled_in((ROOT / path).read_text(encoding="utf-8"))
            (pages / page).write_text(relinked(text, path, pages), encoding="utf-8")


def relinked(text: str, path: str, pages: Path) -> str:
    """Return a document's text with links that work from its page.

    Files of the repository that are no pages are copied to pages/files; a link to a folder becomes its text.

    Raises:
        SystemExit: there is no such file.
    """

    def link(found: re.Match[str]) -> str:
        picture, words, place, anchor = found.groups(default="")
        wanted = os.path.normpath(Path(path).parent / place)
        if (ROOT / wanted).is_dir():
            return words
        if wanted in PAGES:
            return f"[{words}]({PAGES[wanted]}{anchor})"
        if not (ROOT / wanted).is_file():
            sys.exit(f"error: {path} links to {place}, and there is no {wanted}")
        copy = pages / "files" / wanted
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / wanted, copy)
        return f"{picture}[{words}](files/{wanted}{anchor})"

    return LINK.sub(link, text)


def main() -> None:
    """Build, check, and print where the site is; exit with 1 if anything is wrong with it."""
    assemble(TARGET)
    made = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "--config-file", TARGET / "zensical.toml"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = made.stdout + made.stderr
    if made.returncode != 0 or "No issues found" not in said:
        sys.exit(f"{said}\nerror: Zensical did not build the site without a warning")
    problems = check_links.problems(TARGET / "site")
    print("\n".join(problems))
    if problems:
        sys.exit(f"error: {len(problems)} dead links, or resources that need a network")
    print(f"{len(list((TARGET / 'site').rglob('*.html')))} pages, every link checked: {TARGET / 'site' / 'index.html'}")


if __name__ == "__main__":
    main()
