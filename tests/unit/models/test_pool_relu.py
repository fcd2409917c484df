"""Pool and ReLU as one operator: what it returns, its gradients in float64, and when kernels compute it."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from alexnet_dist.models import pool_relu as module
from alexnet_dist.models.pool_relu import NOWHERE, PoolReLU, pool_relu


def test_places_are_bytes():
    maps = torch.tensor([[-1.0, -2, -3, 0, 0], [-4, -5, -6, 0, 7], [-7, -8, -9, 7, 7]]).view(1, 1, 3, 5)
    pooled, places = pool_relu(maps)
    assert places.dtype == torch.uint8
    assert (pooled.tolist(), places.tolist()) == ([[[[0.0, 7.0]]]], [[[[NOWHERE, 3 * 1 + 2]]]])


def test_gradients_in_float64():
    maps = torch.randn(2, 2, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert torch.autograd.gradcheck(lambda given: pool_relu(given)[0], maps)
    torch.library.opcheck(pool_relu, (maps,))


# ---- when they are used ---------------------------------------------------------------------------------------------


class OnCuda(torch.Tensor):
    is_cuda = True


def test_layer_uses_kernels_on_cuda_where_they_work(monkeypatch):
    maps, calls = torch.randn(1, 2, 7, 7), []
    monkeypatch.setattr(module, "pool_relu", lambda given: calls.append("kernels") or pool_relu(given))
    for works in (True, False):
        monkeypatch.setattr(module, "kernels_work", lambda *_, works=works: works)
        calls.clear()
        for given, used in ((maps, []), (maps.as_subclass(OnCuda), ["kernels"] * works)):
            assert torch.equal(PoolReLU(3, 2)(given), F.relu(F.max_pool2d(maps, 3, 2)))
            assert calls == used


@pytest.mark.parametrize("fault", [None, "other values", "another gradient", "no compiler"])
def test_kernels_are_tried_once_and_the_reason_is_told(monkeypatch, caplog, fault):
    def wrong(maps):
        if fault == "no compiler":
            raise RuntimeError("Failed to find C compiler.\nTry CC")
        pooled, places = pool_relu(maps)
        return (pooled * (1 + (fault == "other values")) + (pooled - pooled.detach()) * (fault is not None)), places

    monkeypatch.setattr(module, "pool_relu", wrong)
    works = module.kernels_work.__wrapped__(torch.device("cpu"), torch.bfloat16)
    assert works == (fault is None)
    said = {"no compiler": "Failed to find C compiler.", None: ""}.get(fault, "their result differs")
    told = [record.message for record in caplog.records]
    assert told == ([f"pools are torch's and not the kernels of this package: {said}"] if fault else [])
