"""The input's kernel, by Triton's interpreter on the CPU: the bits that torch's operations give."""

import dataclasses
import sys

import interpreted
import pytest
import torch

from alexnet_dist.data import inputs
from alexnet_dist.data.augment import Augment, Drawn
from alexnet_dist.data.inputs import Inputs, InputSpec

AXES = ((0.1, 0.02, 0.03), (0.0, 0.05, -0.02), (0.01, 0.0, 0.02))
PLAIN = Augment(8, 20, seed=0, flips=True, cutout=0.0, mix=None, mix_alpha=1.0, fill=(10, 120, 230))


@pytest.fixture(scope="module", autouse=True)
def kernel():
    """Let `Inputs` find the interpreted kernel, which writes whole images at once: fewer programs, less time."""
    module = interpreted.load("alexnet_dist.data.fused_input")
    fill = module.fill
    module.fill = lambda *arguments, **named: fill(*arguments, **named, block=1 << 15)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "alexnet_dist.data.fused_input", module)
        yield module


def images_of(count, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def batch_of(count, size, *, mixed):
    ids = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    found = {"images": images_of(count, size), "ids": ids[:count]}
    return found | ({"partner_images": images_of(count, size, seed=2), "partner_ids": ids[-count:]} if mixed else {})


def made(size, *, stored=8, fit="enlarge", **how):
    spec = InputSpec(size, stored_size=stored, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), fit=fit)
    return Inputs(spec, **how)


def drawn(ours, batch, draws):
    return Drawn(ours.augment, draws, batch["ids"], batch.get("partner_images"), batch.get("partner_ids"))


def both(ours, batch, draws):
    """Return what torch's operations and the kernel make of a batch."""
    own = draws[batch["ids"]]
    colors = ours.augment.colors(own)
    by_kernel = ours._by_kernel(batch["images"], drawn(ours, batch, draws), colors)
    return ours._by_torch(ours._mixed(batch, draws, own), colors), by_kernel


def assert_same_bits(expected, found):
    assert (found.dtype, found.shape, found.stride()) == (expected.dtype, expected.shape, expected.stride())
    kinds = {2: torch.int16, 4: torch.int32}
    assert torch.equal(*(tensor.view(kinds[tensor.element_size()]) for tensor in (found, expected))), "-0.0 is not 0.0"


OFF = {"crops": None, "flips": False, "cutout": 0.0, "axes": None}
ON = {"crops": 1.0, "flips": True, "cutout": 0.4, "axes": AXES}


@pytest.mark.parametrize("mix", [None, "mixup", "cutmix"])
@pytest.mark.parametrize("switches", [OFF, ON, *({**OFF, name: ON[name]} for name in ON)], ids=str)
def test_every_augmentation_alone_and_all_together(mix, switches):
    """At a size that is no multiple of the stored one."""
    ours = made(19, margin=(2, 3), augment=dataclasses.replace(PLAIN, **switches, mix=mix))
    assert_same_bits(*both(ours, batch_of(2, 8, mixed=mix is not None), ours.draws(1, torch.device("cpu"))))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("size", "margin"), [(16, (2, 2)), (11, (0, 0))])
def test_types_and_margins(dtype, size, margin):
    ours = made(size, margin=margin, dtype=dtype, augment=dataclasses.replace(PLAIN, **ON, mix="cutmix"))
    assert_same_bits(*both(ours, batch_of(3, 8, mixed=True), ours.draws(0, torch.device("cpu"))))


@pytest.mark.parametrize(("stored", "size"), [(8, 8), (8, 56), (7, 24), (9, 31), (32, 63), (1, 5), (28, 32)])
def test_sizes_without_augmentation(stored, size):
    ours, images = made(size, stored=stored, margin=(2, 1), dtype=torch.bfloat16), images_of(2, stored)
    assert_same_bits(ours._by_torch(images, None), ours._by_kernel(images, None, None))
    channels_last = images.contiguous(memory_format=torch.channels_last).flip(-1)
    found = ours._by_kernel(channels_last, None, None)
    assert_same_bits(ours._by_torch(images.flip(-1), None), found)


def test_photographs_come_in_the_size_of_the_input():
    settings = dataclasses.replace(PLAIN, source_size=16, crops=None, cutout=0.25, mix="cutmix")
    ours = made(16, stored=None, fit="crop", dtype=torch.bfloat16, augment=settings)
    assert_same_bits(*both(ours, batch_of(4, 16, mixed=True), ours.draws(0, torch.device("cpu"))))


def test_small_blocks_and_values_half_way_between_two_of_bf16(kernel):
    """A standard deviation of 1 / 255 leaves integers less a shift: many of them ties."""
    images = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    shift, std = torch.tensor([[0.5, 0.25, -200.5]]), torch.ones(3)
    found = torch.empty((1, 18, 18, 3), dtype=torch.bfloat16).permute(0, 3, 1, 2)
    kernel.fill.__closure__[0].cell_contents(found, images, shift, std, before=1, size=16, block=64)
    expected = (images.float() - shift.view(1, 3, 1, 1)).bfloat16()
    assert_same_bits(torch.nn.functional.pad(expected, (1,) * 4), found.contiguous())


def test_kernel_compiles_for_a_gpu():
    pixels = ("*u8", *["i32"] * 4)
    types = {"inputs": "*i16", "stored": pixels, "partners": pixels, "table": ("*i32", "i32"), "ids": "*i64"}
    types |= {
        "partner_ids": "*i64",
        "taps": ("*i64", "*i64", "*i32", "*i32"),
        "shift": ("*fp32", "i32"),
        "std": "*fp32",
    }
    constants = {"SIDE": 32, "SIZE": 224, "PADDED": 228, "BEFORE": 2, "BLOCK": 1024, "IS_BF16": True, "AUGMENTED": True}
    constants |= {"MIXED": True, "PADDING": 4, "CUTOUT": 8, "FILL": 0}
    assembly = interpreted.assembly("alexnet_dist.data.fused_input", "_fill", types, constants)
    assert "div.rn.f32" in assembly, "quotients rounded as torch's"
    assert "fma" not in assembly, "no product is added without being rounded"


# ---- when it is used ------------------------------------------------------------------------------------------------


class OnCuda(torch.Tensor):
    is_cuda = True


def test_kernel_is_compared_once_and_used_then(monkeypatch):
    monkeypatch.setattr(inputs, "_EQUALS_TORCH", {})
    monkeypatch.setattr(inputs, "FEWEST_FUSED", 2)
    ours, images = made(16), images_of(2, 8).as_subclass(OnCuda)
    calls = []
    for name in ("_by_torch", "_by_kernel"):
        real = getattr(Inputs, name)
        spied = lambda self, *arguments, name=name, real=real: calls.append(name) or real(self, *arguments)  # noqa: E731
        monkeypatch.setattr(Inputs, name, spied)
    first, second = ours(images), ours(images)
    assert calls == ["_by_torch", "_by_kernel", "_by_kernel"]
    assert torch.equal(first, second)
    with pytest.raises(AssertionError, match=r"uint8.*float32"):  # which the kernel would take for values up to 255
        ours((images / 255).as_subclass(OnCuda))
    calls.clear()
    ours(images[:1]), ours(images_of(2, 8)), made(16, dtype=torch.float64)(images)
    assert calls == ["_by_torch"] * 3, "few images, a CPU, and float64"


@pytest.mark.parametrize("fault", ["other bits", "no compiler"])
def test_torchs_operations_take_over_where_the_kernel_fails(monkeypatch, caplog, fault):
    monkeypatch.setattr(inputs, "_EQUALS_TORCH", {})
    monkeypatch.setattr(inputs, "FEWEST_FUSED", 1)
    ours, images = made(16), images_of(2, 8)
    expected = ours(images)

    def by_kernel(*_):
        if fault == "no compiler":
            raise RuntimeError("Failed to find C compiler.\nTry CC")
        return expected + 1

    monkeypatch.setattr(Inputs, "_by_kernel", by_kernel)
    for _ in range(3):
        assert torch.equal(ours(images.as_subclass(OnCuda)), expected)
    said = {"other bits": "its result differs", "no compiler": "Failed to find C compiler."}[fault]
    assert [record.message for record in caplog.records] == [
        f"inputs are made by torch's operations and not by one kernel: {said}"
    ]
