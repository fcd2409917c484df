"""Sets of the Hub and local copies of them: what is read, and each of the Hub's refusals as one line."""

import hashlib
import http.server
import importlib
import os
import socket
import threading
from pathlib import Path
from types import SimpleNamespace

import datasets
import huggingface_hub
import huggingface_hub.errors
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from class_folders import classes, listed, plant
from datasets import ClassLabel, Features, Value
from datasets import Image as ImageFeature
from image_sets import CAT_DOG, hub_folder, pets, pngs, write_parquet
from PIL import Image

from alexnet_dist.errors import UserError
from alexnet_dist.sources import HubUnreachableError, SourceOptions, hub

SCRIPT = RuntimeError("Dataset scripts are no longer supported, but found set.py")


def answering(monkeypatch, *answers):
    """Make `load_dataset` give these answers in turn, errors raised, and return its calls."""
    calls, left = [], list(answers)

    def load_dataset(name, config=None, **options):
        calls.append((name, config, options))
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def tables(**splits):
    """Return a DatasetDict of pets."""
    return datasets.DatasetDict(
        {
            name: datasets.Dataset.from_dict(
                {
                    "img": [{"bytes": content, "path": f"{k}.png"} for k, content in enumerate(pngs(count))],
                    "label": [k % 2 for k in range(count)],
                },
                features=CAT_DOG,
            )
            for name, count in splits.items()
        }
    )


# ---- local copies ---------------------------------------------------------------------------------------------------


def test_a_local_copy_is_read_undecoded(tmp_path):
    train, test = pngs(5), pngs(3, seed=1)
    folder = hub_folder(tmp_path / "pets", train=pets(train, [0, 1, 1, 0, 1]), test=pets(test, [1, 0, 0]))
    found = listed(folder)
    assert (found.name, found.class_names, found.evaluated_on) == ("pets", ("cat", "dog"), "test")
    assert [found.train.read(k) for k in range(5)] == train
    assert [found.test.read(k) for k in range(3)] == test
    assert (found.train.labels.tolist(), found.test.labels.tolist()) == ([0, 1, 1, 0, 1], [1, 0, 0])
    assert found.train.labels.dtype == np.int64
    assert found.train.where(4) == f"--data.dataset {folder}: train[4]"
    assert found.train.extents() is None


def test_what_datasets_itself_writes_is_read(tmp_path):
    rows = {"img": [Image.new("RGB", (4, 4), (k, 0, 0)) for k in range(4)], "label": ["dog", "cat", "dog", "dog"]}
    table = datasets.Dataset.from_dict(rows, features=CAT_DOG)
    (tmp_path / "own/data").mkdir(parents=True)
    for split in ("train", "test"):
        table.to_parquet(tmp_path / f"own/data/{split}-00000-of-00001.parquet")
    assert listed(tmp_path / "own").train.labels.tolist() == [1, 0, 1, 1]
    datasets.DatasetDict(train=table, test=table).save_to_disk(tmp_path / "disk")
    found = listed(tmp_path / "disk")
    assert (len(found.train), found.evaluated_on) == (4, "test")
    table.save_to_disk(tmp_path / "single")
    assert listed(tmp_path / "single").test is None


def differing(label):
    """Return a training split of the classes cat and dog, and a test split whose second label is a dog's."""
    train = datasets.Dataset.from_dict({"img": pngs(4), "label": [0, 1, 0, 1]}, features=CAT_DOG)
    others = Features({"img": ImageFeature(), "label": label})
    named = "cat" if label == Value("string") else label.names.index("cat")
    dog = "dog" if label == Value("string") else label.names.index("dog")
    return train, datasets.Dataset.from_dict({"img": pngs(3, seed=1), "label": [dog, dog, named]}, features=others)


@pytest.mark.parametrize(
    "label", [ClassLabel(names=["dog", "cat"]), ClassLabel(names=["ape", "cat", "dog"]), Value("string")]
)
def test_splits_that_number_their_classes_in_different_ways(tmp_path, label):
    train, test = differing(label)
    datasets.DatasetDict(train=train, test=test).save_to_disk(tmp_path / "disk")
    found = listed(tmp_path / "disk")
    assert (found.class_names, found.test.labels.tolist()) == (("cat", "dog"), [1, 1, 0])


def test_a_class_that_only_the_evaluation_split_has_is_refused_by_name(tmp_path, refusal):
    train, test = differing(ClassLabel(names=["ape", "cat", "dog"]))
    test = datasets.concatenate_datasets([test, test.map(lambda _: {"label": 0})])
    datasets.DatasetDict(train=train, test=test).save_to_disk(tmp_path / "disk")
    assert "the split test has the class ape, and the training split has cat, dog" in refusal(tmp_path / "disk")


def test_parquet_files_that_number_their_classes_in_different_ways_are_refused(tmp_path, refusal):
    # `datasets` reads all of them with the names of the first one
    for split, table in zip(("train", "test"), differing(ClassLabel(names=["dog", "cat"])), strict=True):
        table.to_parquet(tmp_path / f"pets/{split}-00000-of-00001.parquet")
    message = refusal(tmp_path / "pets")
    assert "test-00000-of-00001.parquet has the classes dog, cat, and cat, dog in files before it" in message


def test_bytes_without_features(tmp_path):
    folder = tmp_path / "plain/data"
    folder.mkdir(parents=True)
    contents = pngs(4)
    records = [{"bytes": content, "path": None} for content in contents]
    for split, images in (("train", records), ("test", contents)):
        pq.write_table(pa.table({"image": images, "label": [1, 0, 1, 0]}), folder / f"{split}-00000-of-00001.parquet")
        one = tmp_path / f"only-{split}/data"
        one.mkdir(parents=True)
        pq.write_table(pa.table({"image": images, "label": [1, 0, 1, 0]}), one / "train-00000-of-00001.parquet")
        found = listed(tmp_path / f"only-{split}")
        assert [found.train.read(k) for k in range(4)] == contents


def test_a_copy_is_read_again_from_the_cache_and_anew_when_a_file_changes(tmp_path):
    folder = hub_folder(tmp_path / "pets", train=pets(pngs(4)), test=pets(pngs(2)))
    first = listed(folder, tmp_path / "cache")
    assert listed(folder, tmp_path / "cache").key == first.key
    assert len(list((tmp_path / "cache/arrow").iterdir())) == 1
    before = (folder / "data/train-00000-of-00001.parquet").stat()
    hub_folder(folder, train=pets(pngs(4, seed=9)))
    os.utime(folder / "data/train-00000-of-00001.parquet", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    second = listed(folder, tmp_path / "cache")
    assert second.key != first.key
    assert second.train.read(0) == pngs(4, seed=9)[0] != first.train.read(0)
    assert listed(folder, tmp_path / "cache", eval_split="test").key != second.key


@pytest.mark.parametrize("name", ["data[1]", "a*b", "set"])
def test_paths_that_look_like_patterns_and_copies_with_their_script(tmp_path, name):
    folder = hub_folder(tmp_path / name, train=pets(pngs(4)), validation=pets(pngs(2)))
    (folder / f"{name}.py").write_text("import datasets\n")
    found = listed(folder, tmp_path / "cache")
    assert (len(found.train), len(found.test), found.evaluated_on) == (4, 2, "validation")


def test_labels_are_mapped_over_both_splits(tmp_path):
    kind = Features({"image": ImageFeature(), "label": Value("string")})
    columns = {"image": pngs(3), "label": ["owl", "bee", "owl"]}
    other = {"image": pngs(2), "label": ["cow", "owl"]}
    found = listed(hub_folder(tmp_path / "set", kind, train=columns, test=other))
    assert found.class_names == ("bee", "cow", "owl")
    assert (found.train.labels.tolist(), found.test.labels.tolist()) == ([2, 0, 2], [1, 2])


@pytest.mark.parametrize("missing", [-1, None])
def test_a_test_split_without_labels_is_passed_over(tmp_path, missing):
    unlabelled = pets(pngs(2), [missing, missing])
    folder = hub_folder(tmp_path / "a", train=pets(pngs(4)), test=unlabelled, validation=pets(pngs(3)))
    found = listed(folder)
    assert (found.evaluated_on, len(found.test)) == ("validation", 3)
    assert "the split test has no labels and is passed over" in found.notes
    assert listed(hub_folder(tmp_path / "b", train=pets(pngs(4)), test=unlabelled)).test is None


def test_labels_missing_here_and_there_are_named(tmp_path, refusal):
    folder = hub_folder(tmp_path / "a", train=pets(pngs(3), [0, None, 1]), test=pets(pngs(2)))
    assert "FOLDER: train[1] has label None; labels must be from 0 to 1" in refusal(folder)
    folder = hub_folder(tmp_path / "b", train=pets(pngs(3)), test=pets(pngs(2), [0, 7]))
    assert "FOLDER: test[1] has label 7" in refusal(folder)


def test_a_row_without_image_is_named(tmp_path):
    found = listed(hub_folder(tmp_path / "a", train=pets([*pngs(1), None]), test=pets(pngs(2))))
    with pytest.raises(UserError, match=r"train\[1\] has no image"):
        found.train.read(1)


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_split_is_named(tmp_path, refusal, split):
    folder = hub_folder(tmp_path / "a", train=pets(pngs(2)), test=pets(pngs(2)))
    pq.write_table(CAT_DOG.arrow_schema.empty_table(), folder / f"data/{split}-00000-of-00001.parquet")
    message = refusal(folder)
    assert "empty" in message
    assert split in message
    assert "corresponds to no data" not in message


@pytest.mark.parametrize("damage", [b"PAR1" + bytes(1000) + b"????", b""])
def test_a_damaged_file_is_named(tmp_path, refusal, damage):
    folder = hub_folder(tmp_path / "a", train=pets(pngs(2)), test=pets(pngs(2)))
    (folder / "data/test-00000-of-00001.parquet").write_bytes(damage)
    assert "data/test-00000-of-00001.parquet is damaged" in refusal(folder)


def test_a_column_missing_in_a_split_is_named(tmp_path):
    folder = hub_folder(tmp_path / "a", train=pets(pngs(4)))
    kind = Features({"label": CAT_DOG["label"]})
    write_parquet(folder / "data/test-00000-of-00001.parquet", kind, {"label": [0, 1]})
    found = listed(folder)
    with pytest.raises(UserError, match=r"test\[0\] has no image"):
        found.test.read(0)


# ---- the Hub --------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_a_set_of_the_hub(monkeypatch):
    calls = answering(monkeypatch, tables(train=4, test=2))
    found = listed("some/set", "cache", config="small", revision="abc")
    assert calls == [("some/set", "small", {"revision": "abc"})]
    assert (found.name, found.class_names, len(found.train), len(found.test)) == ("some/set", ("cat", "dog"), 4, 2)
    assert found.train.where(3) == "--data.dataset some/set: train[3] (3.png)"
    assert found.train.read(3) == pngs(4)[3]


def test_the_key_is_of_id_revision_and_options():
    plain = hub.hub_key("some/set", SourceOptions(cache=Path("a")))
    assert plain == hashlib.sha256(b"some/set@main").hexdigest(), "as before, so that caches stay valid"
    others = [{"revision": "v1"}, {"config": "small"}, {"label_column": "y"}, {"eval_split": "validation"}]
    keys = {hub.hub_key("some/set", SourceOptions(cache=Path("b"), **options)) for options in others}
    assert len(keys | {plain}) == 5


def gated(status):
    """Return the error of `datasets` for a gated set, with its cause, as load.py raises it."""
    response = SimpleNamespace(status_code=status, headers={}, request=None)
    error = datasets.exceptions.DatasetNotFoundError("Dataset 'some/set' is a gated dataset on the Hub.")
    error.__cause__ = huggingface_hub.errors.GatedRepoError("Access is restricted", response=response)
    return error


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_set_is_called_gated(monkeypatch, refusal, status):
    answering(monkeypatch, gated(status))
    message = refusal("some/set", cache="cache")
    assert "the set is gated: accept its terms at https://huggingface.co/datasets/FOLDER, then log in" in message
    assert "hf auth login" in message


SEVERAL = (
    "Config name is missing.\nPlease pick one among the available configs: ['full_numbers', 'cropped_digits']"
    "\nExample of usage:\n\t`load_dataset('svhn', 'full_numbers')`"
)
UNKNOWN = "BuilderConfig 'x' not found. Available: ['full_numbers', 'cropped_digits']"


@pytest.mark.parametrize("text", [SEVERAL, UNKNOWN])
def test_several_configurations_are_listed(monkeypatch, refusal, text):
    answering(monkeypatch, ValueError(text))
    assert "choose a configuration by --data.config: full_numbers, cropped_digits" in refusal("some/set", cache="cache")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (datasets.exceptions.DatasetNotFoundError("Dataset 'some/set' doesn't exist"), "the Hub has no such data set"),
        (datasets.exceptions.DataFilesNotFoundError("No (supported) data files found"), "no such data set or revision"),
        (datasets.exceptions.DatasetGenerationError("An error occurred"), "An error occurred"),
        (ValueError('Instruction "test" corresponds to no data!'), "the split test is empty"),
    ],
)
def test_other_answers_of_the_hub(monkeypatch, refusal, error, text):
    answering(monkeypatch, error)
    assert text in refusal("some/set", cache="cache")


@pytest.mark.parametrize("error", ["connection", "http"])
def test_a_hub_that_cannot_be_reached(monkeypatch, error):
    library = importlib.import_module(huggingface_hub.errors.HTTPError.__module__.partition(".")[0])
    answering(monkeypatch, ConnectionError("no route") if error == "connection" else library.ReadTimeout("timed out"))
    with pytest.raises(HubUnreachableError) as caught:
        listed("some/set", "cache")
    for way in ("--data.fallback digits", "--data.dataset FOLDER"):
        assert way in str(caught.value)


@pytest.mark.parametrize(("reachable", "expected"), [(True, None), (False, "1")])
def test_a_hub_that_does_not_answer_is_not_asked_for_images(monkeypatch, reachable, expected):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(hub, "answers", lambda _: reachable)
    answering(monkeypatch, OSError("no route"))
    with pytest.raises(HubUnreachableError):
        listed("some/set", "cache")
    assert os.environ.get("HF_HUB_OFFLINE") == expected


# ---- sets with loading scripts --------------------------------------------------------------------------------------


def files_of_the_branch(monkeypatch, answer):
    asked = []

    def list_repo_files(_, name, **options):
        asked.append((name, options))
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(huggingface_hub, "HfApi", type("HfApi", (), {"list_repo_files": list_repo_files}))
    return asked


def test_a_script_is_replaced_by_its_parquet_copy(monkeypatch):
    asked = files_of_the_branch(
        monkeypatch, ["default/train/0000.parquet", "default/train/0001.parquet", "default/test/0000.parquet", "x.md"]
    )
    calls = answering(monkeypatch, SCRIPT, tables(train=4, test=2))
    found = listed("some/set", "cache")
    assert len(found.train) == 4
    assert found.notes[0] == "read from the branch refs/convert/parquet, as the set is a loading script"
    assert asked == [("some/set", {"repo_type": "dataset", "revision": "refs/convert/parquet"})]
    files = {
        "train": ["default/train/0000.parquet", "default/train/0001.parquet"],
        "test": ["default/test/0000.parquet"],
    }
    assert calls[1] == ("some/set", None, {"revision": "refs/convert/parquet", "data_files": files})


def test_a_configuration_of_a_parquet_copy(monkeypatch, refusal):
    files_of_the_branch(monkeypatch, ["pathmnist/train/0000.parquet", "octmnist/train/0000.parquet"])
    answering(monkeypatch, SCRIPT, SCRIPT, tables(train=4))
    expected = "choose a configuration by --data.config: octmnist, pathmnist"
    assert expected in refusal("some/set", cache="cache")
    assert len(listed("some/set", "cache", config="octmnist").train) == 4


@pytest.mark.parametrize("answer", [huggingface_hub.errors.OfflineModeIsEnabled("offline"), []])
def test_a_script_without_parquet_copy_names_the_branch(monkeypatch, refusal, answer):
    files_of_the_branch(monkeypatch, answer)
    answering(monkeypatch, SCRIPT)
    message = refusal("some/set", cache="cache")
    assert "the set is a loading script" in message
    assert "its parquet copy, the branch refs/convert/parquet," in message
    assert "--data.dataset FOLDER" in message


# ---- whether the Hub answers ----------------------------------------------------------------------------------------


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
            assert hub.answers(url)
        finally:
            server.shutdown()
            thread.join()
    assert not hub.answers(url), "nobody listens any more"


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
            assert not hub.answers(f"http://127.0.0.1:{server.getsockname()[1]}")
        finally:
            thread.join()


def test_the_hub_has_an_address_unless_it_is_to_be_left_alone():
    assert hub.hub({}) == "https://huggingface.co"
    assert hub.hub({"HF_ENDPOINT": "http://mirror"}) == "http://mirror"
    for yes in ("1", "true", "YES", "on"):
        assert hub.hub({"HF_ENDPOINT": "http://mirror", "HF_HUB_OFFLINE": yes}) is None
    assert hub.hub({"HF_HUB_OFFLINE": "0"}) is not None


def test_parquet_files_among_class_folders_are_not_left_aside_in_silence(tmp_path, refusal):
    plant(tmp_path / "both", *classes("train", ("cat", "dog"), 9), *classes("test", ("cat", "dog")))
    hub_folder(tmp_path / "both/old", train=pets(pngs(2)), test=pets(pngs(2)))
    message = refusal(tmp_path / "both")
    assert "holds parquet files (old/data/test-00000-of-00001.parquet) and image files" in message
