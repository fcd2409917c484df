"""Dockerfile, .dockerignore and kubernetes.yaml: what they name is there and fits together. No image is built."""

import json
import re
import shlex
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet
from places import ROOT

import alexnet_dist
from alexnet_dist.commands.main import COMMANDS
from alexnet_dist.config import parse

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
JOINED = "\n".join(line for line in TEXT.splitlines() if not line.startswith("#")).replace("\\\n", " ")
INSTRUCTIONS = [tuple(line.split(maxsplit=1)) for line in JOINED.splitlines() if line.strip()]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
IMAGE = f"alexnet-dist:{alexnet_dist.__version__}"


def said(name):
    """Return what stands behind each instruction of a name."""
    return [words for instruction, words in INSTRUCTIONS if instruction == name]


def sources():
    return [source for words in said("COPY") for source in shlex.split(words)[:-1]]


def let_in(path):
    """Tell whether .dockerignore leaves a path in the build's context: the last line that matches decides."""
    verdict = True
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.removeprefix("!")
        parents = ["/".join(path.split("/")[: end + 1]) for end in range(path.count("/") + 1)]
        if line.strip() and not line.startswith("#"):
            names = [one.rpartition("/")[2] if pattern.startswith("**/") else one for one in parents]
            shape = pattern.removeprefix("**/")
            if any(fnmatch(name, shape) and (shape != "*" or "/" not in name) for name in names):
                verdict = line.startswith("!")
    return verdict


def examples(name, command):
    """Return the words of each line of a file's comments that begins with a command, continued lines joined."""
    text = (ROOT / name).read_text(encoding="utf-8")
    text = re.sub(r"\\\n#?", " ", text)
    return [shlex.split(line, comments=True) for line in re.findall(rf"^#? *({command} .+)", text, re.MULTILINE)]


def test_what_is_copied_is_there_and_let_into_the_build():
    assert sources()
    for source in sources():
        assert (ROOT / source).exists(), source
        assert let_in(source), source


@pytest.mark.parametrize(
    "path",
    ".git .venv .env runs/a/model.safetensors wandb tests docs .netrc core alexnet_dist/config/__pycache__".split(),
)
def test_everything_else_stays_out(path):
    assert not let_in(path)


def test_all_that_is_let_in_is_used():
    allowed = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(allowed) == {source.split("/")[0] for source in sources()}


def test_pip_and_the_launch_scripts_find_what_they_name():
    named = {PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml", "alexnet_dist"}
    for script in (ROOT / "launch").glob("*.sh"):
        text = script.read_text(encoding="utf-8")
        named |= {path.split("/")[0] for path in re.findall(r"\$here/([\w./]+)", text)}
        named |= set(re.findall(r"^[^#\n]*\$here/(launch/[\w.]+)", text, re.MULTILINE))
    assert {"accelerate_config.yaml", "train.py", "launch/gpus.sh"} <= named
    for name in named:
        assert any(name == source or name.startswith(f"{source}/") for source in sources()), name
        assert (ROOT / name).exists()
    for words in said("RUN"):
        for constraints in re.findall(r"--constraint (\S+)", words):
            assert constraints in sources()


def test_packages_are_installed_as_they_were_tested():
    first, second = (words for words in said("RUN") if "pip install" in words)
    assert "--constraint constraints.txt" in first
    extras = re.search(r"'\.\[(.+)\]'", first)[1].split(",")
    assert set(extras) <= PROJECT["optional-dependencies"].keys()
    assert "--no-deps --force-reinstall ." in second, "the first has the same version and no code"
    order = [words for name, words in INSTRUCTIONS if name in ("RUN", "COPY")]
    assert order.index(first) < order.index("alexnet_dist alexnet_dist/") < order.index(second)


def test_the_base_is_a_python_that_the_package_supports():
    (base,) = said("FROM")
    version = re.fullmatch(r"python:(3\.\d+)-slim", base)[1]
    assert f"{version}.0" in SpecifierSet(PROJECT["requires-python"])
    assert f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]


def test_its_words_are_those_of_the_console_script():
    (entry,) = said("ENTRYPOINT")
    assert json.loads(entry) == ["alexnet-dist"], "in brackets: a shell between would not pass SIGTERM on"
    assert "alexnet-dist" in PROJECT["scripts"]


def test_its_user_is_not_root_and_may_write_where_runs_and_caches_go():
    assert INSTRUCTIONS[-2][0] == "USER", "nothing behind it becomes root again"
    user, group = said("USER")[-1].split(":")
    assert int(user) >= 1000
    assert int(group) >= 1000
    (made,) = (words for words in said("RUN") if "useradd" in words)
    assert f"--uid {user} " in made
    owned = made.partition("chown alexnet:alexnet")[2].split()
    variables = dict(pair.split("=") for words in said("ENV") for pair in words.split())
    assert {"/runs", variables["XDG_CACHE_HOME"], f"{said('WORKDIR')[0]}/runs"} == set(owned)
    assert set(owned) <= set(made.split("&&")[1].split()), "made before they are given away"


def test_nothing_secret_is_in_it():
    assert not said("ARG")
    assert not re.search(r"key|token|secret|password|credential", JOINED, re.IGNORECASE)


@pytest.mark.parametrize("name", ["Dockerfile", "docs/start.md", "launch/kubernetes.yaml"])
def test_the_commands_that_are_shown(name):
    (build,) = examples(name, "docker build")
    assert build == ["docker", "build", "-t", IMAGE, "."]
    runs = examples(name, "docker run")
    assert len(runs) == {"Dockerfile": 2, "docs/start.md": 1}.get(name, 0)
    for words in runs:
        command, *options = words[words.index(IMAGE) + 1 :]
        assert command in COMMANDS
        if command == "train":
            volumes = [words[at + 1].split(":")[1] for at, word in enumerate(words) if word == "-v"]
            assert any(parse(options).out_dir.is_relative_to(volume) for volume in volumes), (
                "a run outlives its container"
            )


# ---- kubernetes.yaml ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kubernetes():
    return {one["kind"]: one for one in yaml.safe_load_all((ROOT / "launch/kubernetes.yaml").read_text())}


@pytest.fixture(scope="module")
def pod(kubernetes):
    return kubernetes["PyTorchJob"]["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]


def test_pods_run_the_image_as_its_user(pod):
    (container,) = pod["containers"]
    assert container["image"] == IMAGE
    assert [container["workingDir"]] == said("WORKDIR")
    user, group = map(int, said("USER")[-1].split(":"))
    expected = {"runAsNonRoot": True, "runAsUser": user, "runAsGroup": group, "fsGroup": group}
    assert pod["securityContext"] == expected


def test_what_pods_call_is_in_the_image(pod):
    (container,) = pod["containers"]
    shell, option, script, _ = container["command"]
    assert (shell, option) == ("bash", "-c")
    called = re.search(r'exec (\S+) "\$@"$', script)[1]
    assert (ROOT / called).exists()
    assert called.split("/")[0] in sources()
    config = parse(container["args"])
    mounts = {mount["name"]: Path(mount["mountPath"]) for mount in container["volumeMounts"]}
    assert config.out_dir.is_relative_to(mounts["runs"])
    assert not config.runtime.cpu


def test_pods_have_gpus_shared_memory_and_room_for_checkpoints(kubernetes, pod):
    (container,) = pod["containers"]
    gpus = container["resources"]["limits"]["nvidia.com/gpu"]
    assert isinstance(gpus, int)
    assert gpus >= 1
    shared = next(volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "shm")
    assert shared["medium"] == "Memory"
    assert re.fullmatch(r"\d+Gi", shared["sizeLimit"])
    storage = kubernetes["PersistentVolumeClaim"]["spec"]["resources"]["requests"]["storage"]
    kept = parse(container["args"]).checkpoint.keep
    assert int(storage.removesuffix("Gi")) > 0.7 * (kept + 2), "those that are kept, the best and one that is written"
