"""The prepare command: what it says, and that a run finds what it prepared."""

import io

import numpy as np
import pytest
from PIL import Image

from alexnet_dist.commands import prepare
from alexnet_dist.commands.main import main
from alexnet_dist.config import DataConfig
from alexnet_dist.data import load


@pytest.fixture
def photos(tmp_path):
    """Six JPEGs of two classes for training and two for evaluation, no two of one size."""
    drawn = np.random.default_rng(0)
    for number, (split, name) in enumerate(
        [("train", "cat")] * 4 + [("train", "dog")] * 2 + [("test", "cat"), ("test", "dog")]
    ):
        picture = drawn.integers(0, 256, (70 + number, 90 - number, 3), dtype=np.uint8)
        path = tmp_path / "photos" / split / name / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        Image.fromarray(picture).save(content, "JPEG")
        path.write_bytes(content.getvalue())
    return tmp_path / "photos"


def test_it_says_what_was_prepared_and_a_run_finds_it(photos, tmp_path, capsys, monkeypatch):
    flags = ["--data.dataset", str(photos), "--data.cache-dir", str(tmp_path / "cache"), "--data.batch-size", "2"]
    assert prepare.main(flags, prog="alexnet-dist prepare") == 0
    said = capsys.readouterr().out
    assert "6 training and 2 test images" in said
    assert "2, of 2 to 4 training images" in said
    assert "short sides of 70 to 75 pixels" in said
    monkeypatch.setattr("builtins.open", refuse_jpegs(open))
    found = load(DataConfig(dataset=str(photos), cache_dir=tmp_path / "cache", batch_size=2))
    assert found.fingerprint in said


def refuse_jpegs(original):
    def opened(path, *arguments, **keywords):
        assert not str(path).endswith(".jpg"), "an image was read"
        return original(path, *arguments, **keywords)

    return opened


def test_a_mistake_is_one_line_and_code_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["prepare", "--data.dataset", str(tmp_path / "nowhere")])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: --data.dataset")
