"""Check a built site: every link and anchor leads somewhere, and no page loads anything from a server."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
"""Elements that make a browser load something, and their attribute; `link` only as a style sheet, icon or the like."""
HARMLESS = {"canonical", "next", "prev", "alternate"}


class Page(HTMLParser):
    """Anchors, links and loaded resources of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.targets: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect what an element says."""
        said = {name: value or "" for name, value in attrs}
        self.anchors |= {said[name] for name in ("id", "name") if name in said}
        if tag == "a" and "href" in said:
            self.targets.append(said["href"])
        if tag in LOADS and LOADS[tag] in said and said.get("rel") not in HARMLESS:
            self.loaded.append(said[LOADS[tag]])


def problems(site: Path) -> list[str]:
    """Return a line for each dead link or anchor, and for each resource that is not in the site."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        if path.name == "404.html":  # its links begin at a server's root
            continue
        name = path.relative_to(site).as_posix()
        found += [f"{name} loads {target} from a server" for target in page.loaded if urlsplit(target).netloc]
        for target in [*page.targets, *page.loaded]:
            address = urlsplit(target)
            if address.scheme or address.netloc:
                continue
            other = (path.parent / unquote(address.path)).resolve() if address.path else path
            if not other.is_file():
                found.append(f"{name} links to {target}, which is not there")
            elif address.fragment and other in pages and unquote(address.fragment) not in pages[other].anchors:
                found.append(f"{name} links to {target}, which has no such anchor")
    for style in site.rglob("*.css"):
        loaded = re.findall(r"url\([\"']?(https?:[^)\"']+)", style.read_text(encoding="utf-8"))
        found += [f"{style.relative_to(site)} loads {address} from a server" for address in loaded]
    return found
