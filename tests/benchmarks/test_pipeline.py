"""What benchmarks/pipeline.py makes of its runs, and that it runs; how fast loaders are is not looked at."""

import json
import sys

import numpy as np
import pytest
from photos import encoded
from PIL import Image
from places import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import measuring
import pipeline
import pipeline_loaders as loaders


def row(name: str, number: int, rate: float, images: str = "originals", workers: int = 2) -> measuring.Row:
    figures = {"images_per_second": rate, "cpu_ms_per_image": 2.5, "peak_memory_gib": 1.5, "version": "1.0"}
    return {"round": number, "of": images, "workers": workers, "name": name, **figures}


ROWS = [row("timm", 0, 10), row("dali", 0, 20), row("alexnet_dist", 0, 30), row("region", 0, 60)]
ROWS += [row("timm", 1, 40), row("dali", 1, 40), row("alexnet_dist", 1, 40), row("alexnet_dist", 1, 90, "pixels")]


def photos(folder, *names):
    """Write JPEGs of several sizes."""
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(280 + 9 * seed, 300, seed=seed))
    return folder


def test_ratios_are_taken_within_a_round_and_among_the_same_images_and_workers():
    assert pipeline.ratios(ROWS, "timm", "originals", 2) == [3, 1]
    assert pipeline.ratios(ROWS, "timm", "originals", 1) == []
    assert pipeline.ratios(ROWS, "dali", "originals", 2, of="region") == [3]


def test_the_best_peer_is_none_of_our_own_loaders():
    (found,) = pipeline.best(ROWS, pipeline.summarize(ROWS))
    assert (found["of"], found["workers"], found["peer"]) == ("originals", 2, "dali")
    assert found["ratios"]["alexnet_dist"] == {"median": 1.25, "least": 1, "most": 1.5}
    assert found["ratios"]["region"]["median"] == 3


def test_table_has_a_line_for_each_loader_and_kind_of_images():
    summary = pipeline.summarize([*ROWS, row("timm", 0, 5, workers=1)])
    lines = pipeline.table(summary).splitlines()
    assert len(lines) == 2 + 5
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith(
        "| originals | timm `create_loader` | 5 (5 to 5) |  | 25 (10 to 40) | 2.00 (1.00 to 3.00) |"
    )
    assert "| raw pixels" not in lines[2]
    assert "raw pixels | alexnet_dist |  |  | 90 (90 to 90) |  |" in lines[-1]


def test_staged_are_the_jpegs_of_the_training_folder(tmp_path):
    folder = photos(tmp_path / "photos", "train/a/0.jpg", "train/b/1.JPEG", "test/a/2.jpg")
    (folder / "train" / "a" / "notes.txt").write_text("no picture")
    (tmp_path / "scratch").mkdir()
    originals = pipeline.stage(folder, tmp_path / "scratch")
    assert [str(path.relative_to(originals)) for path in sorted(originals.glob("*/*"))] == ["a/0.jpg", "b/1.JPEG"]
    resized = pipeline.resize(originals, tmp_path / "scratch")
    assert [Image.open(path).size for path in sorted(resized.glob("*/*"))] == [(274, 256), (266, 256)]
    with pytest.raises(SystemExit, match="class folders"):
        pipeline.stage(tmp_path / "scratch" / "originals" / "a", tmp_path / "other")


def test_what_is_not_installed_is_left_out(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(loaders.importlib.util, "find_spec", lambda name: None if name == "timm" else object())
    monkeypatch.setattr(measuring, "call", lambda *_: measuring.Run(2**30, 1, {"images_per_second": 8}))
    folder = photos(tmp_path / "photos", "a/0.jpg", "b/1.jpg")
    flags = f"{folder} --contenders timm datasets --images originals --workers 2 --rounds 1"
    monkeypatch.setattr(sys, "argv", ["pipeline.py", *flags.split()])
    (tmp_path / "scratch").mkdir()
    rows, _ = pipeline.measure(pipeline.parse(), tmp_path / "scratch")
    assert [row["name"] for row in rows] == ["datasets"]
    assert "timm `create_loader` is left out: timm is not installed" in capsys.readouterr().out


def test_a_part_of_a_package_that_is_not_installed_is_not_installed(monkeypatch):
    contender = loaders.Contender(loaders.dali, "no_such_package.part", "none")
    monkeypatch.setitem(loaders.CONTENDERS, "dali", contender)
    assert not loaders.is_installed("dali")


@pytest.mark.slow
def test_a_round_of_our_own_loader(tmp_path, monkeypatch):
    folder = photos(tmp_path / "photos", *(f"{'ab'[k % 2]}/{k}.jpg" for k in range(6)))
    out = tmp_path / "out"
    flags = f"{folder} --contenders alexnet_dist --rounds 1 --workers 1 --seconds 0.1 --batch-size 4 --size 32"
    monkeypatch.setattr(sys, "argv", ["pipeline.py", *flags.split(), "--out", str(out), "--scratch", str(tmp_path)])
    pipeline.main()
    results = json.loads((out / "pipeline.json").read_text())
    assert set(results) == {"machine", "settings", "read", "contenders", "best", "rounds"}
    assert {"folder", "scratch", "out"}.isdisjoint(results["settings"]), "no paths of a machine"
    assert results["read"]["files"] == 6
    assert [run["of"] for run in results["rounds"]] == ["originals", "resized", "pixels"]
    for run in results["rounds"]:
        assert run["images"] % 4 == 0
        assert run["images_per_second"] == pytest.approx(run["images"] / run["seconds"])
        assert run["peak_memory_gib"] > 0
        assert run["cpu_ms_per_image"] > 0
    assert (out / "pipeline.md").read_text().count("\n| ") == 1 + 3
    assert (out / "pipeline.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("images", loaders.EVERY)
def test_batches_of_a_folder_that_is_repeated_are_uint8_crops(images, tmp_path):
    folder = photos(tmp_path / "photos", "a/0.jpg", "b/1.jpg", "b/2.jpg")
    task = loaders.Task(images, folder, tmp_path, workers=2, batch_size=4, size=24)
    batches = loaders.alexnet_dist(task)
    first, second = next(batches).numpy().copy(), next(batches).numpy()
    assert (first.shape, first.dtype) == ((4, 3, 24, 24), np.uint8)
    assert not np.array_equal(first, second)
    batches.close()


def test_the_contender_without_regions_gives_the_same_pixels(tmp_path):
    task = loaders.Task("originals", photos(tmp_path / "photos", "a/0.jpg", "b/1.jpg"), tmp_path, 1, 2, 24)
    whole = loaders._photos(task)
    given = loaders.Whole(whole.folder, whole.store, whole.stored_size, whole.rows).picture(0, [3, 5, 20, 30])
    assert np.array_equal(given, whole.picture(0)[3:23, 5:35])
