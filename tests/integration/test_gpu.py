"""Runs on a GPU against the same runs on the CPU."""

import pytest
import torch
from tiny import DEFAULT_OPTIMIZER, losses, run


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", [[], DEFAULT_OPTIMIZER], ids=["adam", "default"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_gpu_is_close_to_the_cpu(tmp_path, precision, optimizer):
    flags = ["--model.dropout", "0", "--max-steps", "3", *optimizer]
    cpu = losses(run(tmp_path / "cpu", *flags, "--runtime.cpu"))
    gpu = losses(run(tmp_path / "gpu", *flags, "--runtime.precision", precision))
    assert gpu == pytest.approx(cpu, rel={"fp32": 1e-3, "bf16": 2e-2, "fp16": 1e-2}[precision])


@pytest.mark.gpu
def test_compiled_network_on_the_gpu_is_close_to_the_cpu(tmp_path):
    flags = ["--model.dropout", "0", "--max-steps", "3"]
    cpu = losses(run(tmp_path / "cpu", *flags, "--runtime.cpu"))
    assert losses(run(tmp_path / "gpu", *flags, "--runtime.compile")) == pytest.approx(cpu, rel=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("stop", [2, 3])
def test_stopped_gpu_run_goes_on_as_the_uninterrupted_one(tmp_path, stop):
    """To rounding: cuDNN's fastest algorithms add in no fixed order."""
    whole, cut = run(tmp_path / "whole"), run(tmp_path / "cut", "--max-steps", str(stop))
    run(cut, "--resume", "must")
    assert losses(cut) == pytest.approx(losses(whole), rel=1e-3)


@pytest.mark.gpu
def test_enlargement_on_the_gpu_is_pillows():
    from alexnet_dist.data.resize import enlarge

    for source in (8, 32):
        images = torch.randint(0, 256, (16, 3, source, source), dtype=torch.uint8)
        assert torch.equal(enlarge(images.cuda(), 224).cpu(), enlarge(images, 224))


@pytest.mark.gpu
def test_photographs_on_the_gpu_are_those_of_the_cpu(tmp_path):
    """To the bit: threads resize originals, and the GPU stored pixels."""
    from photos import InMemory, encoded

    from alexnet_dist.data import GlobalBatches, PhotoLoader, crops
    from alexnet_dist.data.photographs import prepare

    sides = torch.randint(40, 400, (150, 2)).tolist()
    images = InMemory([encoded(*side, seed=k) for k, side in enumerate(sides)])
    order = GlobalBatches(150, 70, seed=0, drop_last=False, partners=True)
    for store in ("pixels", "encoded"):
        photos = prepare(images, None, ("a", "b"), tmp_path / store, store=store, stored_size=256, threads=2).train
        drawn = crops.boxes(0, 0, photos.heights, photos.widths, (0.08, 1.0))
        for boxes in (drawn, None):
            batches = []
            for device in ("cpu", "cuda"):
                made = PhotoLoader(
                    photos, order, size=224, device=torch.device(device), threads=4, boxes=lambda _, b=boxes: b,
                    epoch=lambda: 0,
                )  # fmt: skip
                assert made.resizes_on_device == (device == "cuda" and store == "pixels" and crops.UINT8_KERNEL)
                batches.append(list(made))
            for cpu, gpu in zip(*batches, strict=True):
                assert all(torch.equal(gpu[key].cpu(), cpu[key]) for key in cpu)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mix", [None, "mixup", "cutmix"])
def test_inputs_by_one_kernel_are_those_of_torchs_operations(mix, dtype):
    """To the bit, on the CPU and on the GPU; with colours, whose small product may be rounded in another order."""
    from alexnet_dist.data import Inputs, InputSpec, augment

    spec = InputSpec(224, stored_size=32, mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26))
    for axes in (None, ((0.1, 0.02, 0.03), (0.0, 0.05, -0.02), (0.01, 0.0, 0.02))):
        settings = augment.Augment(
            32, 100, 0, flips=True, cutout=0.25, mix=mix, mix_alpha=1.0, fill=(9, 8, 7), axes=axes
        )
        inputs = Inputs(spec, (2, 2), dtype, settings)
        batch = {"images": torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8), "ids": torch.arange(64)}
        if mix:
            batch |= {"partner_images": batch["images"].flip(0), "partner_ids": batch["ids"].flip(0)}
        on_gpu = {key: tensor.cuda() for key, tensor in batch.items()}
        draws = inputs.draws(0, torch.device("cuda"))
        own, mixed = draws[on_gpu["ids"]], (on_gpu.get("partner_images"), on_gpu.get("partner_ids"))
        drawn = augment.Drawn(settings, draws, on_gpu["ids"], *mixed)
        by_torch = inputs._by_torch(inputs._mixed(on_gpu, draws, own), settings.colors(own))
        by_kernel = inputs._by_kernel(on_gpu["images"], drawn, settings.colors(own))
        assert torch.equal(by_kernel, by_torch)
        if axes is None:
            assert torch.equal(by_kernel.cpu(), inputs.augmented(batch, draws.cpu()))
        assert torch.equal(inputs._by_kernel(on_gpu["images"], None, None), inputs._by_torch(on_gpu["images"], None))


@pytest.mark.gpu
def test_kernels_that_are_compared_at_their_first_use_stay_in_use(tmp_path):
    from alexnet_dist.data import inputs

    inputs._EQUALS_TORCH.clear()
    run(tmp_path / "gpu", "--max-steps", "2", "--data.batch-size", "64")
    assert inputs._EQUALS_TORCH
    assert all(inputs._EQUALS_TORCH.values())


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(8, 64, 55, 55), (8, 192, 27, 27), (8, 256, 13, 13)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pools_by_kernels_are_torchs(shape, dtype):
    """On integers, of which many are equal and whose sums every order of adding makes alike."""
    import torch.nn.functional as F  # noqa: N812

    from alexnet_dist.models.pool_relu import kernels_work, pool_relu

    device = torch.device("cuda")
    assert kernels_work(device, dtype), "the log says why not"
    maps = torch.randint(-9, 9, shape, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
    maps.requires_grad_()
    expected, found = F.max_pool2d(F.relu(maps), 3, 2), pool_relu(maps)[0]
    assert torch.equal(found, expected)
    gradient = torch.randint(-9, 9, expected.shape, device=device).to(dtype)
    assert torch.equal(torch.autograd.grad(found, maps, gradient)[0], torch.autograd.grad(expected, maps, gradient)[0])


@pytest.mark.gpu
@pytest.mark.parametrize("parts", ["1", "2"])
def test_cuda_graphs_change_no_loss(tmp_path, parts):
    """Against the compiled network without them; two epochs, so that evaluation replays graphs too."""
    flags = ["--model.dropout", "0", "--epochs", "2", "--optim.accumulate", parts]
    compiled = losses(run(tmp_path / "compiled", *flags, "--runtime.compile"))
    assert losses(run(tmp_path / "graphs", *flags, "--runtime.cuda-graphs")) == pytest.approx(compiled, rel=1e-3)
