"""Data sets in both layouts, the Hub, the fallback and the bundled sets."""

import errno
import http.server
import importlib
import os
import re
import socket
import sys
import threading
import warnings
from pathlib import Path

import datasets
import huggingface_hub.errors
import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Features, Value
from datasets import Image as ImageFeature
from image_sets import CAT_DOG, as_pillow_reads, assert_equal_data, hub_folder, pets, pngs, random_images, undecodable
from PIL import Image

from alexnet_dist import atomic_files
from alexnet_dist.config import DataConfig
from alexnet_dist.data import sources
from alexnet_dist.errors import UserError

# what damaged files provoke from Pillow beside the error; the package's own warnings stay visible
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:PIL.*"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:PIL.*"),
]


# ---- layouts, columns, classes --------------------------------------------------------------------------------------


def test_hub_layout_is_read_pixel_for_pixel(tmp_path, load):
    train, test = pngs(5), pngs(3, seed=1)
    folder = hub_folder(tmp_path / "pets", train=pets(train, [0, 1, 1, 0, 1]), test=pets(test, [1, 0, 0]))
    loaded = load(folder)
    for split, encoded, labels in ((loaded.train, train, [0, 1, 1, 0, 1]), (loaded.test, test, [1, 0, 0])):
        assert split.images.shape == (len(encoded), 3, 4, 4)
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int64
        assert split.labels.tolist() == labels
        expected = np.stack([as_pillow_reads(content) for content in encoded]).transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(split.images, expected)
    assert loaded.class_names == ("cat", "dog")
    assert loaded.name == "pets"
    assert loaded.flips
    assert loaded.fallback_for is None
    assert len(loaded.train) == 5


def test_what_datasets_itself_writes_is_read(tmp_path, load):
    images = random_images(4)
    rows = {"img": [Image.fromarray(pixels) for pixels in images], "label": ["dog", "cat", "dog", "dog"]}
    (tmp_path / "own" / "data").mkdir(parents=True)
    for split in ("train", "test"):
        dataset = datasets.Dataset.from_dict(rows, features=CAT_DOG)
        dataset.to_parquet(tmp_path / "own" / "data" / f"{split}-00000-of-00001.parquet")
    loaded = load(tmp_path / "own")
    np.testing.assert_array_equal(loaded.train.images, images.transpose(0, 3, 1, 2))
    assert loaded.test.labels.tolist() == [1, 0, 1, 1]


def test_image_folder_is_read_pixel_for_pixel(image_folder, load):
    folder = image_folder(size=6, per_class=3, classes=("owl", "bee", "cow"))
    loaded = load(folder)
    assert loaded.class_names == ("bee", "cow", "owl")
    for name, split in (("train", loaded.train), ("test", loaded.test)):
        files = sorted((folder / name).glob("*/*.png"))
        assert split.images.shape == (9, 3, 6, 6)
        expected = np.stack([as_pillow_reads(file.read_bytes()) for file in files]).transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(split.images, expected)
        assert [loaded.class_names[label] for label in split.labels] == [file.parent.name for file in files]


@pytest.mark.parametrize(("image", "label"), [("img", "label"), ("image", "species"), ("picture", "y")])
def test_columns_are_found_by_type_whatever_their_names(tmp_path, load, image, label):
    kind = Features({"id": Value("int64"), label: ClassLabel(names=["cat", "dog"]), image: ImageFeature()})
    columns = {"id": [7, 8, 9], label: [1, 0, 1], image: pngs(3)}
    loaded = load(hub_folder(tmp_path / "pets", kind, train=columns, test=columns))
    assert loaded.train.labels.tolist() == [1, 0, 1]
    np.testing.assert_array_equal(loaded.train.images, random_images(3).transpose(0, 3, 1, 2))


@pytest.mark.parametrize("order", [("coarse", "fine"), ("fine", "coarse")])
def test_of_several_labels_the_finest_counts(tmp_path, load, order):
    labels = {"coarse": ClassLabel(names=["a", "b"]), "fine": ClassLabel(names=["p", "q", "r"])}
    kind = Features({"image": ImageFeature()} | {name: labels[name] for name in order})
    columns = {"image": pngs(3), "coarse": [0, 1, 1], "fine": [2, 0, 1]}
    loaded = load(hub_folder(tmp_path / "two", kind, train=columns, test=columns))
    assert loaded.train.labels.tolist() == [2, 0, 1]
    assert loaded.class_names == ("p", "q", "r")


@pytest.mark.parametrize(("name", "dtype"), [("label", "int64"), ("labels", "int8")])
def test_integers_serve_as_labels(tmp_path, load, name, dtype):
    kind = Features({"image": ImageFeature(), name: Value(dtype)})
    columns = {"image": pngs(3), name: [2, 0, 1]}
    loaded = load(hub_folder(tmp_path / "plain", kind, train=columns, test=columns))
    assert loaded.train.labels.tolist() == [2, 0, 1]
    assert loaded.train.labels.dtype == np.int64
    assert loaded.class_names == ("0", "1", "2")


@pytest.mark.parametrize("present", [("validation",), ("validation", "test")])
def test_validation_stands_in_only_where_there_is_no_test_split(tmp_path, load, present):
    sizes = {"validation": 2, "test": 3}
    splits = {name: pets(pngs(sizes[name])) for name in present}
    loaded = load(hub_folder(tmp_path / "pets", train=pets(pngs(4)), **splits))
    assert len(loaded.test) == sizes[present[-1]]


def test_loading_warns_of_nothing(good, load):
    """Not even where the user has switched off the progress bars of `datasets`, as this suite does."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(good)


# ---- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["img", "label"])
def test_column_missing_in_the_test_split_is_named(tmp_path, complaint, missing):
    test_kind = Features({name: kind for name, kind in CAT_DOG.items() if name != missing})
    columns = {name: values for name, values in pets(pngs(2)).items() if name != missing}
    folder = hub_folder(tmp_path / "partial", train=pets(pngs(4)), test=columns, test_kind=test_kind)
    message = complaint(folder)
    assert re.search(r"FOLDER: (test\[0\]|the split test) ", message)
    assert re.search({"img": "image|img", "label": "label"}[missing], message)


@pytest.mark.parametrize(
    ("columns", "present"),
    [
        ({"label": (ClassLabel(names=["cat", "dog"]), [0, 1])}, "label (ClassLabel)"),
        ({"img": (ImageFeature(), [b"", b""])}, "img (Image)"),
        ({"img": (ImageFeature(), [b"", b""]), "label": (Value("string"), ["0", "1"])}, "label (Value)"),
        ({"img": (Value("binary"), [b"", b""]), "label": (ClassLabel(names=["cat", "dog"]), [0, 1])}, "img (Value)"),
    ],
)
def test_without_image_or_label_column_the_present_ones_are_told(tmp_path, complaint, columns, present):
    kind = Features({name: feature for name, (feature, _) in columns.items()})
    values = {name: rows for name, (_, rows) in columns.items()}
    message = complaint(hub_folder(tmp_path / "columns", kind, train=values, test=values))
    assert "one Image column and a ClassLabel column" in message
    assert present in message


def test_two_image_columns_are_ambiguous(tmp_path, complaint):
    kind = Features({"left": ImageFeature(), "right": ImageFeature(), "label": ClassLabel(names=["cat", "dog"])})
    columns = {"left": pngs(2), "right": pngs(2), "label": [0, 1]}
    message = complaint(hub_folder(tmp_path / "stereo", kind, train=columns, test=columns))
    assert "left (Image)" in message
    assert "right (Image)" in message


@pytest.mark.parametrize("row_groups", [0, 1])
@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_split_is_named(tmp_path, complaint, split, row_groups):
    """With no row group, as `datasets` writes it, and with one that has no rows, as pyarrow does."""
    folder = hub_folder(tmp_path / "hollow", train=pets(pngs(2)), test=pets(pngs(2)))
    file = folder / "data" / f"{split}-00000-of-00001.parquet"
    table = CAT_DOG.arrow_schema.empty_table()
    if row_groups:
        pq.write_table(table, file)
    else:
        pq.ParquetWriter(file, table.schema).close()
    assert pq.ParquetFile(file).metadata.num_row_groups == row_groups
    message = complaint(folder)
    assert "empty" in message
    assert re.search(rf"split {split}\b|{split}-00000", message)


@pytest.mark.parametrize(("present", "missing"), [("train", "test"), ("test", "train")])
def test_a_missing_split_is_told(tmp_path, complaint, present, missing):
    message = complaint(hub_folder(tmp_path / "half", **{present: pets(pngs(2))}))
    assert re.search(rf"splits train and test, and has {present}$", message)
    assert not message.endswith(missing)


def test_image_folder_without_test_images(image_folder, complaint):
    folder = image_folder()
    for file in (folder / "test").glob("*/*.png"):
        file.unlink()
    assert complaint(folder).endswith("needs the splits train and test, and has train")


USELESS = {
    "nothing": {},
    "text": {"notes.txt": b"nothing to see"},
    "unknown files": {"model.xyz": b"\x00\x01"},
    "loading script": {"useless.py": b"import datasets"},
    "broken card": {"README.md": b"---\nlicense: [mit\nother: }\n---\n"},
    "broken JSON": {"train.json": b"{", "test.json": b"{"},
}


@pytest.mark.parametrize("content", USELESS)
def test_a_folder_with_nothing_usable(tmp_path, complaint, content):
    folder = tmp_path / "useless"
    folder.mkdir()
    for name, text in USELESS[content].items():
        (folder / name).write_bytes(text)
    assert "FOLDER" in complaint(folder)


@pytest.mark.parametrize("damage", ["garbage", "truncated", "zero bytes"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_corrupt_parquet_file_is_named(good, complaint, damage, split):
    file = good / "data" / f"{split}-00000-of-00001.parquet"
    content = file.read_bytes()
    damaged = {"garbage": b"PAR1" + bytes(1000) + b"????", "truncated": content[:-10], "zero bytes": b""}
    file.write_bytes(damaged[damage])
    assert file.name in complaint(good)


def test_a_flipped_bit_of_a_parquet_file_is_harmless_or_the_users_error(good, load):
    file = good / "data" / "train-00000-of-00001.parquet"
    content = file.read_bytes()
    refused = 0
    for position in range(4, len(content) - 8, len(content) // 10):
        damaged = bytearray(content)
        damaged[position] ^= 0x40
        file.write_bytes(damaged)
        try:
            assert len(load(good).train) == 5
        except UserError:
            refused += 1
    assert refused > 0
    file.write_bytes(content)
    assert len(load(good).train) == 5


def test_an_unreadable_source_is_the_users_error(good, complaint, monkeypatch):
    def denied(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(atomic_files, "sha256", denied)
    assert "Permission denied" in complaint(good)


# ---- the Hub and the fallback ---------------------------------------------------------------------------------------


def test_without_network_the_ways_out_are_told(load):
    with pytest.raises(sources.HubUnreachableError) as caught:
        load("cifar10")
    message = str(caught.value)
    assert "uoft-cs/cifar10" in message
    assert "--data.fallback digits" in message
    assert "--data.dataset FOLDER" in message
    assert "\n" not in message


def test_the_fallback_is_used_and_nobody_can_miss_it(load, caplog):
    loaded = load("cifar10", fallback="digits")
    assert loaded.name == "digits"
    assert loaded.fallback_for == "cifar10"
    assert not loaded.flips
    (record,) = (record for record in caplog.records if "FALLBACK" in record.getMessage())
    assert record.levelname == "WARNING"
    assert "digits instead of cifar10" in record.getMessage()
    assert load("digits", fallback="digits").fallback_for is None


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "{tmp}/nowhere", "~/nowhere", "a/b/c", "{tmp}/file"])
def test_the_fallback_is_no_excuse_for_a_missing_folder(complaint, tmp_path, caplog, name):
    (tmp_path / "file").touch()
    dataset = name.format(tmp=tmp_path)
    assert "a folder that exists" in complaint(dataset, fallback="digits")
    assert caplog.records == []


def test_a_folder_of_the_same_name_does_not_shadow_a_named_data_set(tmp_path, load, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("cifar10", "synthetic"):
        hub_folder(tmp_path / name, train=pets(pngs(2)), test=pets(pngs(2)))
    with pytest.raises(sources.HubUnreachableError):
        load("cifar10")
    assert load("synthetic").train.images.shape[2:] == (32, 32)
    assert load("./cifar10").train.images.shape == (2, 3, 4, 4)


def test_a_name_that_no_path_can_have(complaint):
    assert "--data.dataset" in complaint("long" * 1000, fallback="digits")


def test_the_fallback_is_no_excuse_for_a_broken_folder(tmp_path, complaint, caplog):
    folder = hub_folder(tmp_path / "broken", train=pets([*pngs(1), b"broken"]), test=pets(pngs(1)))
    assert "train[1]" in complaint(folder, fallback="digits")
    (tmp_path / "empty").mkdir()
    assert "FOLDER" in complaint(tmp_path / "empty", fallback="digits")
    assert not [record for record in caplog.records if "FALLBACK" in record.getMessage()]


@pytest.mark.parametrize(
    "error",
    [
        datasets.exceptions.DatasetNotFoundError("Dataset 'some/set' doesn't exist on the Hub"),
        datasets.exceptions.DataFilesNotFoundError("No (supported) data files found in some/set"),
        datasets.exceptions.DatasetGenerationError("An error occurred while generating the dataset"),
        datasets.exceptions.NonMatchingSplitsSizesError("[{'expected': 2, 'recorded': 1}]"),
        RuntimeError("Dataset scripts are no longer supported, but found set.py"),
        ValueError("Config name is missing."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_the_fallback_is_no_excuse_for_what_the_hub_answers(complaint, caplog, monkeypatch, error):
    def answer(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", answer)
    assert "--data.dataset FOLDER" in complaint("some/set", fallback="digits")
    assert not [record for record in caplog.records if "FALLBACK" in record.getMessage()]


def test_a_connection_that_breaks_counts_as_unreachable(load, monkeypatch):
    """The Hub's client retries and then lets the errors of its HTTP library through; httpx's are no OSErrors."""
    library = importlib.import_module(huggingface_hub.errors.HTTPError.__module__.partition(".")[0])

    def broken(*_, **__):
        raise library.ReadTimeout("The read operation timed out")

    monkeypatch.setattr(datasets, "load_dataset", broken)
    with pytest.raises(sources.HubUnreachableError, match="timed out"):
        load("some/set")


def test_a_revision_that_is_ignored_is_told(good, load, caplog):
    load(good, revision="abc")
    (record,) = caplog.records
    assert "--data.revision is ignored" in record.getMessage()


class _Teapot(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_error(418)

    def log_message(self, *_):
        pass


@pytest.fixture
def no_proxy(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_proxy")
def test_any_answer_of_a_server_is_an_answer():
    with http.server.HTTPServer(("127.0.0.1", 0), _Teapot) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        try:
            assert sources.answers(url)
        finally:
            server.shutdown()
            thread.join()
    assert not sources.answers(url), "nobody listens any more"


def test_the_hub_has_an_address_unless_it_is_to_be_left_alone():
    assert sources.hub({}) == "https://huggingface.co"
    assert sources.hub({"HF_ENDPOINT": "http://mirror"}) == "http://mirror"
    for yes in ("1", "true", "YES", "on"):
        assert sources.hub({"HF_ENDPOINT": "http://mirror", "HF_HUB_OFFLINE": yes}) is None
    assert sources.hub({"HF_HUB_OFFLINE": "0"}) is not None


@pytest.mark.parametrize(("reachable", "offline"), [(True, None), (False, "1")])
def test_a_hub_that_does_not_answer_is_not_asked_for_images(monkeypatch, reachable, offline):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(sources, "answers", lambda _: reachable)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: (_ for _ in ()).throw(OSError("no route")))
    with pytest.raises(sources.HubUnreachableError):
        sources.load(DataConfig(dataset="cifar10"))
    assert os.environ.get("HF_HUB_OFFLINE") == offline


@pytest.mark.usefixtures("no_proxy")
def test_a_captive_portal_that_speaks_no_http_is_no_answer():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"login first\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            assert not sources.answers(f"http://127.0.0.1:{server.getsockname()[1]}")
        finally:
            thread.join()


# ---- bundled sets ---------------------------------------------------------------------------------------------------


def test_digits_are_all_of_scikit_learns_once_each(load):
    bunch = pytest.importorskip("sklearn.datasets").load_digits()
    loaded = load("digits")
    assert len(loaded.train) + len(loaded.test) == 1797
    assert loaded.train.images.shape[1:] == (3, 8, 8)
    assert loaded.train.images.dtype == np.uint8
    assert loaded.train.labels.dtype == np.int64
    expected = sorted(
        (np.rint(image * 255 / 16).astype(np.uint8).tobytes(), int(label))
        for image, label in zip(bunch.images, bunch.target, strict=True)
    )
    found = []
    for split in (loaded.train, loaded.test):
        assert (split.images == split.images[:, :1]).all(), "grey: the channels are equal"
        found += [(i[0].tobytes(), int(k)) for i, k in zip(split.images, split.labels, strict=True)]
    assert sorted(found) == expected, "each scan once, in one of the splits"
    assert loaded.train.images.max() == 255
    assert loaded.class_names == tuple("0123456789")


def test_digits_are_split_by_class_and_always_alike(load):
    pytest.importorskip("sklearn")
    loaded = load("digits")
    for digit in range(10):
        in_test, in_train = (loaded.test.labels == digit).sum(), (loaded.train.labels == digit).sum()
        assert in_test == (in_test + in_train) // 5
    assert not loaded.flips, "a mirrored 2 is no 2"
    assert_equal_data(load("digits"), loaded)


def test_digits_without_scikit_learn(load, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r"pip install 'alexnet_dist\[demo\]'"):
        load("digits")


def test_synthetic_images_are_balanced_deterministic_and_learnable(load):
    loaded = load("synthetic")
    assert loaded.train.images.shape == (4000, 3, 32, 32)
    assert loaded.test.images.shape == (1000, 3, 32, 32)
    assert loaded.train.images.dtype == np.uint8
    assert np.bincount(loaded.train.labels).tolist() == [400] * 10
    assert np.bincount(loaded.test.labels).tolist() == [100] * 10
    assert_equal_data(load("synthetic"), loaded)
    assert not {i.tobytes() for i in loaded.train.images} & {i.tobytes() for i in loaded.test.images}

    def accuracy(labels):
        """Of the nearest class mean, learned from these labels."""
        flat = loaded.train.images.reshape(4000, -1).astype(np.float32)
        means = np.stack([flat[labels == k].mean(axis=0) for k in range(10)])
        scores = loaded.test.images.reshape(1000, -1).astype(np.float32) @ means.T - (means**2).sum(axis=1) / 2
        return (scores.argmax(axis=1) == loaded.test.labels).mean()

    assert accuracy(loaded.train.labels) > 0.5
    assert accuracy(np.random.default_rng(0).permutation(loaded.train.labels)) < 0.3


@pytest.mark.skipif("ALEXNET_DIST_TEST_CIFAR10" not in os.environ, reason="names no folder with the real CIFAR-10")
def test_real_cifar10(load, monkeypatch):
    folder = os.environ["ALEXNET_DIST_TEST_CIFAR10"]
    loaded = load(folder)
    for split, count in ((loaded.train, 50_000), (loaded.test, 10_000)):
        assert split.images.shape == (count, 3, 32, 32)
        assert np.bincount(split.labels).tolist() == [count // 10] * 10
    assert len(loaded.class_names) == 10
    # as widely published for the original; of copies compressed as JPEG, too
    np.testing.assert_allclose(loaded.mean, (0.4914, 0.4822, 0.4465), atol=3e-3)
    np.testing.assert_allclose(loaded.std, (0.2470, 0.2435, 0.2616), atol=3e-3)
    rows = pq.read_table(next(Path(folder).rglob("train-*.parquet"))).column("img")
    for index in range(0, 50_000, 997):
        pixels = as_pillow_reads(rows[index]["bytes"].as_py())
        np.testing.assert_array_equal(loaded.train.images[index].transpose(1, 2, 0), pixels)
    monkeypatch.setattr(sources, "decode", undecodable)
    assert load(folder).fingerprint == loaded.fingerprint
