"""The network, its starting weights, and what it costs."""

import logging
from urllib.error import URLError

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F  # noqa: N812
import torchvision

from alexnet_dist.config import ModelConfig
from alexnet_dist.errors import UserError
from alexnet_dist.models import alexnet as model
from alexnet_dist.models import fast_layers, weights

NUM_PARAMETERS = 57_044_810


@pytest.fixture(scope="module")
def network():
    return model.build(ModelConfig(init="torch", conv1_init_scale=1), num_classes=10, seed=0, image_size=63)


@pytest.fixture(scope="module")
def weights_file(network, tmp_path_factory):
    """The network's weights as a file: 228 MB, so it goes when the tests of this module are over."""
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    safetensors.torch.save_file(network.state_dict(), path)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def imagenet_file(tmp_path_factory):
    """AlexNet with 1000 classes, each tensor filled with its own number; half precision to save space."""
    path = tmp_path_factory.mktemp("imagenet") / "imagenet.safetensors"
    safetensors.torch.save_file({key: value.clone() for key, value in imagenet_state().items()}, path)
    yield path
    path.unlink()


def test_hes_weights_keep_the_size_of_a_signal():
    """In torch's default the image is all but gone behind the last hidden layer; biases are what is left."""
    spread = {}
    images = with_margin(torch.randn(6, 3, 224, 224, generator=torch.Generator().manual_seed(0)))
    for init in ("torch", "he"):
        network = model.build(ModelConfig(init=init, conv1_init_scale=1, dropout=0.0), num_classes=10, seed=0).eval()
        hidden = network.classifier[:6](network.avgpool(network.features(images)).flatten(1)).detach()
        spread[init] = hidden.std(dim=0).mean().item()  # between images
    assert spread["he"] > 0.1
    assert spread["torch"] < 0.01


def test_hes_weights_have_his_variance_and_no_biases_behind_conv1(network):
    drawn = model.build(ModelConfig(init="he", conv1_init_scale=1), num_classes=10, seed=0)
    for name, tensor in drawn.named_parameters():
        if name.startswith("features.0."):
            assert torch.equal(tensor, network.get_parameter(name)), "conv1 is torch's"
        elif name.endswith("bias"):
            assert not tensor.any(), name
        elif name != "classifier.6.weight":
            assert tensor.std().item() == pytest.approx((2 / tensor[0].numel()) ** 0.5, rel=0.02), name
    assert drawn.classifier[6].weight.std().item() == pytest.approx(0.01, rel=0.02)
    again = model.build(ModelConfig(init="he", conv1_init_scale=1), num_classes=10, seed=0).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in drawn.state_dict().items())


@pytest.mark.parametrize("init", ["torch", "he"])
def test_conv1s_draw_has_the_size_asked_for_and_nothing_else_changes(init):
    usual = model.build(ModelConfig(init=init, conv1_init_scale=1), num_classes=10, seed=0).state_dict()
    for name, tensor in model.build(
        ModelConfig(init=init, conv1_init_scale=0.25), num_classes=10, seed=0
    ).named_parameters():
        assert torch.equal(tensor, usual[name] * (0.25 if name.startswith("features.0.") else 1)), name


def plain(num_classes):
    """torchvision's own network, without memory."""
    with torch.device("meta"):
        return torchvision.models.alexnet(num_classes=num_classes)


def with_margin(images):
    """Pad images as the network's input has to be."""
    return F.pad(images, fast_layers.margin(images.shape[-1]) * 2)


def imagenet_state():
    shapes = {key: value.shape for key, value in plain(1000).state_dict().items()}
    return {key: torch.tensor(0.25 + index).half().expand(shape) for index, (key, shape) in enumerate(shapes.items())}


def build_without_memory(config, num_classes=10):
    """For what is refused or read off before any number matters."""
    start = weights.starting_weights(config)
    with torch.device("meta"):
        return model.build(config, num_classes=num_classes, seed=0, start=start)


def build_from(config, seed=0):
    """Build the network on the weights that the configuration names."""
    return model.build(config, num_classes=10, seed=seed, start=weights.starting_weights(config))


# ---- the network ----------------------------------------------------------------------------------------------------


def test_number_of_parameters(network):
    assert model.num_parameters(network) == NUM_PARAMETERS


def test_only_the_head_differs_from_torchvision(network):
    ours = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    theirs = {key: tuple(value.shape) for key, value in plain(1000).state_dict().items()}
    assert list(ours) == list(theirs)
    assert {key for key in ours if ours[key] != theirs[key]} == {"classifier.6.weight", "classifier.6.bias"}
    assert ours["classifier.6.weight"] == (10, 4096)
    assert ours["classifier.6.bias"] == (10,)


def test_weights_are_float32_on_the_cpu(network):
    assert {(tensor.dtype, tensor.device.type) for tensor in network.parameters()} == {(torch.float32, "cpu")}


def test_torchvisions_own_network_takes_the_weights_and_agrees(network):
    twin = plain(10)
    twin.load_state_dict(network.state_dict(), assign=True)
    images = torch.rand(2, 3, 63, 63, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = network.eval()(with_margin(images))
        torch.testing.assert_close(logits, twin.eval()(images), rtol=1e-4, atol=1e-6)  # exact in fp64: test_fast_layers
    assert logits.shape == (2, 10)
    assert not torch.equal(logits[0], logits[1])


def test_weights_follow_from_the_seed(network):
    torch.rand(7)  # whatever was drawn before must not matter
    again = model.build(ModelConfig(init="torch", conv1_init_scale=1), num_classes=10, seed=0).state_dict()
    other = model.build(ModelConfig(init="torch", conv1_init_scale=1), num_classes=10, seed=1).state_dict()
    for key, value in network.state_dict().items():
        assert torch.equal(value, again[key]), key
        assert not torch.equal(value, other[key]), key


def test_weights_of_torchs_own_drawing_are_torchvisions(network):
    torch.manual_seed(0)
    for key, value in torchvision.models.alexnet().state_dict().items():
        if not key.startswith(model.HEAD):
            assert torch.equal(value, network.state_dict()[key]), key


def test_dropout_probability():
    network = build_without_memory(ModelConfig(dropout=0.25))
    assert [part.p for part in network.modules() if isinstance(part, torch.nn.Dropout)] == [0.25, 0.25]


def test_parameter_table(network):
    *rows, total = model.parameter_table(network).splitlines()
    parameters = dict(network.named_parameters())
    assert len(rows) == len(parameters) == 16
    for row, (name, tensor) in zip(rows, parameters.items(), strict=True):
        words = row.split()
        assert words[0] == name
        assert "".join(words[1:-1]) == "x".join(map(str, tensor.shape))
        assert words[-1] == f"{tensor.numel():,}"
    assert total.split() == ["total", "57,044,810"]
    assert len({len(row) for row in [*rows, total]}) == 1, "columns line up"


def test_parameter_table_shows_conv1_as_the_lecture_does(network):
    first = model.parameter_table(network).splitlines()[0]
    assert " ".join(first.split()) == "features.0.weight 64 x 3 x 11 x 11 23,232"


def test_training_flops():
    # by hand, multiply-adds of the convolutions and the three linear layers at 224, for one image
    forward = 64 * 3 * 121 * 55**2 + 192 * 64 * 25 * 27**2 + (384 * 192 + 256 * 384 + 256 * 256) * 9 * 13**2
    forward += 9216 * 4096 + 4096 * 4096 + 4096 * 10
    input_gradient_of_conv1 = 64 * 3 * 121 * 55**2  # images need none
    flops = model.training_flops(build_without_memory(ModelConfig()), 224)
    assert flops == 2 * (3 * forward - input_gradient_of_conv1)
    assert flops == pytest.approx(4.12e9, rel=0.01)


def test_training_flops_counts_the_real_head_and_size():
    small, large = build_without_memory(ModelConfig()), build_without_memory(ModelConfig(), num_classes=1000)
    assert model.training_flops(large, 63) - model.training_flops(small, 63) == 2 * 3 * 4096 * 990
    assert model.training_flops(small, 63) < model.training_flops(small, 224)


# ---- weights from a file --------------------------------------------------------------------------------------------


def test_weights_make_the_round_trip(network, weights_file, caplog):
    config = ModelConfig(weights=weights_file)
    loaded = build_from(config, seed=99).state_dict()
    for key, value in network.state_dict().items():
        assert torch.equal(value, loaded[key]), key
    assert not any("head" in record.message for record in caplog.records), "a head that fits is no reason for a warning"


def test_a_head_of_1000_classes_starts_fresh(network, imagenet_file, caplog):
    config = ModelConfig(weights=imagenet_file, init="torch")
    with caplog.at_level(logging.WARNING):
        loaded = build_from(config).state_dict()
    expected = imagenet_state()
    for key, value in loaded.items():
        if key.startswith("classifier.6"):
            assert torch.equal(value, network.state_dict()[key]), "the head that this seed gives"
        else:
            assert torch.equal(value, expected[key].float()), key
    (record,) = caplog.records
    assert str(imagenet_file) in record.message
    assert "head" in record.message


def test_weights_with_a_head_of_1000_classes_want_imagenets_statistics(imagenet_file):
    transforms = torchvision.models.AlexNet_Weights.IMAGENET1K_V1.transforms()
    expected = (tuple(transforms.mean), tuple(transforms.std))
    assert weights.starting_weights(ModelConfig(weights=imagenet_file)).statistics == expected
    assert weights.starting_weights(ModelConfig()) is None


def tiny(keys=None, **changes):
    """A state with AlexNet's keys and tensors too small to be true."""
    keys = plain(10).state_dict() if keys is None else keys
    return {key: torch.ones(1) for key in keys} | changes


def write_truncated(path):
    safetensors.torch.save_file({"features.0.bias": torch.ones(64)}, path)
    path.write_bytes(path.read_bytes()[:-100])


def write_pickle(path):
    torch.save({"features.0.bias": torch.ones(64)}, path)  # noqa: TID251 - that it is refused is the point


BAD_FILES = {
    "missing": lambda path: path.unlink(missing_ok=True),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": write_truncated,
    "garbage": lambda path: path.write_bytes(bytes(range(256)) * 64),
    "text": lambda path: path.write_text("two\nlines\n"),
    "pickle": write_pickle,
    "folder": lambda path: path.mkdir(),
    "wrong keys": lambda path: safetensors.torch.save_file(tiny(["conv1.weight", "conv1.bias"]), path),
    "a key is missing": lambda path: safetensors.torch.save_file(tiny(list(plain(10).state_dict())[1:]), path),
    "a key too many": lambda path: safetensors.torch.save_file(tiny(extra=torch.ones(1)), path),
    "wrong shapes": lambda path: safetensors.torch.save_file(tiny(), path),
    "of a wrapper": lambda path: safetensors.torch.save_file(
        {f"module._orig_mod.{key}": tensor for key, tensor in tiny().items()}, path
    ),
}


@pytest.mark.parametrize("fault", BAD_FILES)
def test_files_that_hold_no_weights_are_refused(fault, tmp_path):
    path = tmp_path / "weights.pth"
    BAD_FILES[fault](path)
    with pytest.raises(UserError) as refusal:
        build_without_memory(ModelConfig(weights=path))
    message, convert = str(refusal.value), f"`alexnet-dist convert {path} OUT.safetensors`"
    assert "\n" not in message
    assert message.startswith("--model.weights ")
    assert str(path) in message
    named = {
        "missing": "no such file",
        "pickle": f"Pickled .pt and .pth files can run code when they are read, so they are not: {convert}",
        "wrong keys": "AlexNet: it lacks features.0.weight, features.0.bias, features.3.weight; it also has conv1.bias",
        "a key is missing": "torchvision's AlexNet: it lacks features.0.weight",
        "a key too many": "torchvision's AlexNet: it also has extra",
        "wrong shapes": "AlexNet: other shapes: features.0.weight (1,) instead of (64, 3, 11, 11), features.0.bias",
        "of a wrapper": f"all its keys begin with module._orig_mod. as a wrapper's do, and {convert}",
    }
    assert named.get(fault, "") in message
    assert (convert in message) == (fault in {"empty", "garbage", "text", "pickle", "of a wrapper"})


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({}, "it lacks features.0.weight"),
        ({"classifier.6.bias": torch.tensor(1.0)}, "it lacks features.0.weight"),
        (tiny() | {"classifier.6.bias": torch.ones(3)}, "other shapes: features.0.weight"),
        ({"model.a": torch.ones(1)}, "it lacks .*; it also has model.a"),
    ],
)
def test_what_is_handed_out_is_torchvisions_network_or_an_error(tensors, words):
    with pytest.raises(UserError, match=f"it does not hold torchvision's AlexNet: {words}"):
        model.plain(tensors)


def test_a_pickle_is_never_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    path = tmp_path / "weights.pth"
    torch.save({"features.0.bias": Bomb()}, path)  # noqa: TID251 - that it is refused is the point
    with pytest.raises(UserError):
        weights.starting_weights(ModelConfig(weights=path))
    with pytest.raises(UserError):
        build_without_memory(ModelConfig(weights=path))
    assert not (tmp_path / "ran").exists()


# ---- torchvision's weights ------------------------------------------------------------------------------------------


def test_pretrained_weights_keep_the_fresh_head(network, monkeypatch):
    wishes = {}

    def give(self, **kwargs):
        wishes.update(kwargs, who=self)
        return imagenet_state()

    monkeypatch.setattr(torchvision.models.AlexNet_Weights, "get_state_dict", give)
    loaded = build_from(ModelConfig(pretrained=True, init="torch")).state_dict()
    assert wishes["check_hash"] is True, "what comes from the network is verified"
    assert wishes["who"] is torchvision.models.AlexNet_Weights.IMAGENET1K_V1
    for key, value in imagenet_state().items():
        if not key.startswith("classifier.6"):
            assert torch.equal(loaded[key], value.float()), key
    assert torch.equal(loaded["classifier.6.weight"], network.state_dict()["classifier.6.weight"])


@pytest.mark.parametrize("fault", [URLError("no route to host"), TimeoutError("timed out"), RuntimeError("bad hash")])
def test_pretrained_weights_that_cannot_be_had(fault, monkeypatch):
    def fail(*_args, **_kwargs):
        raise fault

    monkeypatch.setattr(torchvision.models.AlexNet_Weights, "get_state_dict", fail)
    with pytest.raises(UserError) as refusal:
        build_without_memory(ModelConfig(pretrained=True))
    message = str(refusal.value)
    assert "\n" not in message
    assert "--model.pretrained" in message
    assert "https://download.pytorch.org/models/alexnet" in message
    assert "--model.weights" in message
    assert "`alexnet-dist convert alexnet-owt-7be5be79.pth OUT.safetensors`" in message
    assert str(fault) in message
