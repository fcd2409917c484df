"""Files that are replaced whole."""

from alexnet_dist import atomic_files


def test_write_text_replaces_and_leaves_nothing_behind(tmp_path):
    for text in ("one", "zwölf\n"):
        atomic_files.write_text(tmp_path / "a.txt", text)
        assert (tmp_path / "a.txt").read_text(encoding="utf-8") == text
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
