"""What every test gets: no network, no tracker, a cache of its own, and Accelerate's state as if just started."""

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # tests run beside each other: a thread that waits must not keep a core busy

import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs from all tests but those for them: the numbers and process counts here are a CPU's."""
    if config.getoption("markexpr") != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(autouse=True, scope="session")
def few_threads() -> None:
    """Let torch use two threads; it is imported late, as the process that hands tests to others has no use for it."""
    import torch

    torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of homes: among those of tests, which are numbered, each would count all before it."""
    return tmp_path_factory.mktemp("homes")


@pytest.fixture(autouse=True)
def clean_state(monkeypatch: pytest.MonkeyPatch, homes: Path) -> Iterator[None]:
    """Give each test an empty home for caches and logins, and reset Accelerate's process-wide state."""
    home = Path(tempfile.mkdtemp(dir=homes))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    for variable in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("WANDB_API_KEY", "NETRC", "OMP_NUM_THREADS"):
        monkeypatch.delenv(variable, raising=False)
    yield
    reset_accelerate()


def reset_accelerate() -> None:
    """Forget the process group's settings, as in a new process."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    GradientState._reset_state()


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the folder of a finished run of tests/support/tiny.py: 2 epochs of 3 steps, with pictures of both.

    All tests of a pytest invocation share it, also those of other xdist workers, so none may write there: whoever wants
    to continue it makes a copy. It outlives the workers, whose own folders are below the one that it is in.
    """
    import tiny
    from filelock import FileLock

    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished"
    shared.mkdir(exist_ok=True)
    folder, fault, end = shared / "run", shared / "fault", shared / "end"
    with FileLock(shared / "lock"):
        if not fault.exists() and not end.exists():
            try:
                tiny.run(folder, "--log.kernels-every-epochs", "1", drawn=True)
                end.touch()
            except Exception:  # noqa: BLE001 - whatever it is, every worker shows it
                fault.write_text(traceback.format_exc())
            reset_accelerate()
    if fault.exists():
        pytest.fail(f"the run that tests share has failed:\n{fault.read_text()}", pytrace=False)
    before = last_changes(folder)
    yield folder
    assert last_changes(folder) == before, "a test has written to the run that all tests share"


def last_changes(folder: Path) -> dict[Path, int]:
    """Return when each file was changed, in ns."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """Return a maker of small data sets in ImageFolder layout."""
    import numpy as np
    from PIL import Image

    def make(
        *, size: int = 8, per_class: int = 4, classes: tuple[str, ...] = ("cat", "dog"), name: str = "images"
    ) -> Path:
        rng = np.random.default_rng(0)
        for split in ("train", "test"):
            for class_name in classes:
                folder = tmp_path / name / split / class_name
                folder.mkdir(parents=True)
                for index in range(per_class):
                    pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / f"{index}.png")
        return tmp_path / name

    return make


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run the test under each of three umasks."""
    before = os.umask(request.param)
    yield
    os.umask(before)
