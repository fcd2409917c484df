"""The documentation site that `make docs` builds: every option, page, link, figure and Python name is in it."""

import importlib
import re
import sys

import pytest
from options import OPTIONS
from places import ROOT

import alexnet_dist
from alexnet_dist.commands.main import COMMANDS, main
from alexnet_dist.doctor import cli as doctor

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

sys.path.insert(0, str(ROOT / "benchmarks"))
sys.path.insert(0, str(ROOT / "docs" / "site"))
import build_site
import check_links
import option_tables
import structure
import words

DOCS = ROOT / "docs"
REFERENCE = "\n".join((DOCS / name).read_text(encoding="utf-8") for name in ("options.md", "commands.md"))
EXPLAINED_ELSEWHERE = {"--help", "--config"}
PAGE = """# A heading. Of two sentences

It reads [a page](other.md#place): **0.5** of it. `A b c` is
one word. ![A picture's text](picture.png) counts.

```
python words.py    # Code. None of it counts
```
| table | Rows. Do not count. |
|---|---|

* First of two. Second over
  two lines.
* Third, without a full stop
<!-- options: train.own -->

1. A numbered one!
2. Another?
"""


def flags(text):
    """Return the options that a help text or a table names; of a switch's two forms the one that turns it on."""
    found = {flag.replace("_", "-") for flag in re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", text)} - EXPLAINED_ELSEWHERE
    return {flag for flag in found if re.sub(r"(--|\.)no-", r"\1", flag) not in found - {flag}}


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Return the folder of the pages as Zensical reads them."""
    target = tmp_path_factory.mktemp("site") / "docs"
    build_site.assemble(target)
    return target / "pages"


def test_every_option_of_train_is_in_the_reference_with_type_default_and_help():
    rows = list(option_tables.rows(option_tables.COMMANDS["train"]))
    shown = {row.flag.rpartition("`")[2] for row in rows}
    assert shown == {f"--{option.replace('_', '-')}" for option in OPTIONS}
    assert all(row.type and row.help for row in rows)
    by_flag = {row.flag: row for row in rows}
    assert by_flag["--data.batch-size"][1:3] == ("integer", "`256`")
    assert by_flag["--optim.name"].type == "`adam`, `adamw`, `sgd`, `lars`, `lamb`, `muon`"
    assert by_flag["--data.no-augment` or `--data.augment"].default == "on"


@pytest.mark.parametrize("command", COMMANDS)
def test_what_help_lists_is_in_the_reference(command, pages, capsys):
    if command == "doctor":  # its `command` ends the process
        said = doctor._options().format_help()
    else:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        said = capsys.readouterr().out
    listed = flags(said)
    page = "options.md" if command in ("train", "prepare") else "commands.md"
    text = (pages / page).read_text(encoding="utf-8")
    if page == "commands.md":  # its own section, and the data set's options, which are train's
        text = text.partition(f"## {command}\n")[2].partition("\n## ")[0] + option_tables.table("train", "data")
    assert listed or command == "dashboard"
    assert not listed - flags(text)


def test_no_mark_is_left_on_a_page(pages):
    for page in pages.glob("*.md"):
        assert "<!-- options" not in page.read_text(encoding="utf-8"), page.name


def test_every_page_is_in_the_navigation_and_the_other_way_round(pages):
    config = tomllib.loads((DOCS / "site" / "zensical.toml").read_text(encoding="utf-8"))["project"]
    named = re.findall(r"'([\w-]+\.md)'", str(config["nav"]))
    assert sorted(named) == sorted(path.name for path in pages.glob("*.md"))


def test_links_lead_to_pages_and_to_copies_of_other_files(tmp_path):
    text = (
        "[a](../CONTRIBUTING.md#rules) ![b](../benchmarks/results/throughput.png) [c](results) [d](https://e.org/f.md)"
    )
    assert build_site.relinked(text, "docs/start.md", tmp_path) == (
        "[a](contributing.md#rules) ![b](files/benchmarks/results/throughput.png) c [d](https://e.org/f.md)"
    )
    assert (tmp_path / "files/benchmarks/results/throughput.png").is_file()
    with pytest.raises(SystemExit, match="there is no docs/nowhere"):
        build_site.relinked("[a](nowhere.md)", "docs/start.md", tmp_path)


def test_dead_links_and_resources_of_servers_are_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<p id="here"><a href="#here"></a><a href="b.html#there"></a><a href="c.html"></a><a href="https://d.org"></a>'
        '<script src="https://unpkg.com/x.js"></script><link rel="stylesheet" href="d.css">'
    )
    (tmp_path / "b.html").write_text("<p>nothing</p>")
    (tmp_path / "d.css").write_text("@font-face { src: url(https://fonts.org/f.woff2) }")
    assert check_links.problems(tmp_path) == [
        "a.html loads https://unpkg.com/x.js from a server",
        "a.html links to b.html#there, which has no such anchor",
        "a.html links to c.html, which is not there",
        "d.css loads https://fonts.org/f.woff2 from a server",
    ]


def test_python_names_of_the_reference_exist_and_public_ones_are_in_it():
    named = re.findall(r"^::: ([\w.]+)$", (DOCS / "python.md").read_text(encoding="utf-8"), re.MULTILINE)
    found = {}
    for name in named:
        module, _, attribute = name.rpartition(".")
        found[name] = getattr(importlib.import_module(module), attribute)
    for name in set(alexnet_dist.__all__) - {"__version__"}:
        assert getattr(alexnet_dist, name) in found.values()


def test_the_picture_of_the_wings_has_the_arrows_of_the_code():
    picture = (DOCS / "pictures" / "wings.svg").read_text(encoding="utf-8")
    drawn = re.findall(r'data-arrow="(\w+) (\w+)"', picture)
    assert sorted(drawn) == structure.arrows()
    wings = {path.parent.name for path in structure.PACKAGE.glob("*/__init__.py")}
    assert wings <= set(re.findall(r">(\w+)</text>", picture))


def test_speeds_in_the_comparison_are_those_of_the_benchmark():
    page = (DOCS / "comparison.md").read_text(encoding="utf-8").partition("## Speed")[2]
    measured = (ROOT / "benchmarks" / "results" / "throughput.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\w ]+) \| ([\d.]+) \| ([\d.]*) ?\|$", page, re.MULTILINE)
    assert len(rows) == 3
    for loop, speed, ratio in rows:
        (row,) = [line for line in measured.splitlines() if line.startswith(f"| {loop}")]
        assert f"| {speed} (" in row
        assert f"| {ratio} (" in row or not ratio


def test_every_recipe_is_on_its_page():
    text = (DOCS / "recipes.md").read_text(encoding="utf-8")
    recipes = (ROOT / "alexnet_dist" / "config" / "recipes").glob("*.yaml")
    assert {path.stem for path in recipes} == set(re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE))


@pytest.mark.parametrize("path", words.documents(), ids=lambda path: path.name)
def test_no_sentence_of_a_document_is_too_long(path):
    assert [each.text for each in words.sentences(path) if each.words > words.LONGEST] == []


@pytest.mark.parametrize("path", words.documents(), ids=lambda path: path.name)
def test_documents_use_the_terms_of_the_field(path):
    assert list(words.house_words(path)) == []


@pytest.mark.parametrize("page", ["options.md", "commands.md"])
def test_help_texts_use_the_terms_of_the_field(pages, page):
    assert list(words.house_words(pages / page)) == []


def test_house_words_are_whole_words_in_any_case_over_the_end_of_a_line(tmp_path):
    (tmp_path / "page.md").write_text("Mirror images\naveraged. Outright answers, brightanswers and whole batches.\n")
    assert list(words.house_words(tmp_path / "page.md")) == [("mirror images averaged", "flip TTA")]


def test_sentences_are_those_that_people_read(tmp_path, monkeypatch):
    monkeypatch.setattr(words, "ROOT", tmp_path)
    (tmp_path / "page.md").write_text(PAGE)
    assert [(each.text, each.words) for each in words.sentences(tmp_path / "page.md")] == [
        ("It reads a page: 0.5 of it.", 7),
        ("`A b c` is one word.", 4),
        ("A picture's text counts.", 4),
        ("First of two.", 3),
        ("Second over two lines.", 4),
        ("Third, without a full stop", 5),
        ("A numbered one!", 3),
        ("Another?", 1),
    ]
    assert {each.where for each in words.sentences(tmp_path / "page.md")} == {"page.md"}
