"""What the code may not do, read from its source, and what it may not believe."""

import ast
import re
import struct
import sys
import zlib

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from alexnet_dist.config import Config, flat, to_dict
from alexnet_dist.data import decode
from alexnet_dist.distributed import topology
from alexnet_dist.errors import UserError
from alexnet_dist.tracking import run_dir

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib
from places import ROOT

SOURCES = sorted([ROOT / "train.py", *(ROOT / "alexnet_dist").rglob("*.py")])
FORBIDDEN = {
    "a pickle runs code": {
        "pickle",
        "dill",
        "cloudpickle",
        "shelve",
        "torch.load",
        "torch.save",
        "numpy.load",
        "np.load",
    },
    "Accelerate's state is made of pickles": {".load_state", ".save_state"},
    "text becomes code": {"eval", "exec", "os.system", "os.popen"},
    "YAML makes objects": {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.Loader", "yaml.UnsafeLoader"},
    "Pillow's limits are there for a reason": {".MAX_IMAGE_PIXELS =", ".LOAD_TRUNCATED_IMAGES ="},
}
# Where what is forbidden is needed: `convert` reads the pickles of other programs, for their tensors.
ALLOWED = {"alexnet_dist/commands/convert.py": ["torch.load", "weights_only"]}
# Versions from which known faults are mended; the comments in pyproject.toml say which.
FLOORS = {"torch": "2.10", "datasets": "4", "pillow": "11", "PyYAML": "6", "safetensors": "0.5"}


def names(tree):
    """Yield every name, attribute, module and dotted pair in a module, with " =" behind attributes that are set."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield f".{node.attr}"
            if not isinstance(node.ctx, ast.Load):
                yield f".{node.attr} ="
            if isinstance(node.value, ast.Name):
                yield f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.name for alias in node.names)
            yield getattr(node, "module", None) or ""
        elif isinstance(node, ast.keyword):
            yield node.arg or ""


def offences(source):
    used = set(names(ast.parse(source)))
    return sorted(name for group in FORBIDDEN.values() for name in group & used) + sorted(
        used & {"trust_remote_code", "shell", "weights_only"}
    )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_dangerous_is_called(path):
    """S3 to S6, S8, S12."""
    assert offences(path.read_text(encoding="utf-8")) == ALLOWED.get(str(path.relative_to(ROOT)), [])


def test_a_pickle_is_read_in_one_place_and_its_code_is_never_run():
    """S3."""
    (place,) = ALLOWED
    tree = ast.parse((ROOT / place).read_text(encoding="utf-8"))
    loads = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "load"]
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.func in loads]
    assert len(loads) == len(calls) == 1
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in calls[0].keywords}
    assert given == {"weights_only": "True", "map_location": "'cpu'"}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load(path, weights_only=False)",
        "accelerator.save_state()",
        "yaml.load(text)",
        "subprocess.run(line, shell=True)",
        "PIL.Image.MAX_IMAGE_PIXELS = None",
        "datasets.load_dataset(name, trust_remote_code=True)",
    ],
)
def test_the_search_finds_what_it_looks_for(source):
    assert offences(source)


def test_dependencies_begin_where_known_faults_are_mended():
    """S1, S2, S8."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = {r.name: r.specifier for r in map(Requirement, project["dependencies"])}
    for name, floor in FLOORS.items():
        lowest = min(Version(spec.version) for spec in asked[name] if spec.operator == ">=")
        assert lowest >= Version(floor), name


def test_no_option_takes_a_secret():
    """S9: a command line is seen by everyone on the machine, and recorded."""
    for option in flat(to_dict(Config())):
        assert not re.search(r"key|token|secret|password|credential", option), option


@pytest.mark.parametrize("name", ["../../outside", "..", "org/..", "/", "a\\..\\b", ""])
def test_a_run_folder_named_after_its_data_stays_below_runs(tmp_path, monkeypatch, name):
    """S10, S12."""
    monkeypatch.chdir(tmp_path)
    folder = run_dir.choose_run_dir(Config(), data_name=name)
    assert folder.resolve().parent == tmp_path / "runs"


def test_an_image_that_claims_to_be_vast_is_refused_by_its_header():
    """S12: 3.6 gigapixels in 50 bytes."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    with pytest.raises(UserError, match=r"train\[7\] is not an image that can be read"):
        decode.header(png, "train[7]")


@pytest.mark.parametrize(
    ("ranks", "on_this_host", "chosen", "expected"),
    [(2, 2, None, True), (1, 1, None, False), (2, 2, "eth7", False)],
)
def test_ranks_of_one_machine_talk_over_its_loopback_interface(monkeypatch, ranks, on_this_host, chosen, expected):
    """S12: gloo's connections ask nobody who they are."""
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(on_this_host))
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    if chosen:
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", chosen)
    found = topology.gloo_interface()
    assert (found is not None) == expected
    assert found is None or found.startswith("lo")
