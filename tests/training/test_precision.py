"""The number type of training: one of the two, and autocast gives it."""

import pytest
import torch

from model.training import precision

pytestmark = pytest.mark.training

CPU = torch.device("cpu")


def test_a_gpu_gets_bfloat16_untried() -> None:
    assert precision.fast_type("cuda") == torch.bfloat16


@pytest.mark.parametrize("fast", [torch.bfloat16, torch.float32])
def test_products_have_the_type_that_was_faster(monkeypatch: pytest.MonkeyPatch, fast: torch.dtype) -> None:
    assert precision.fast_type("cpu") in (torch.bfloat16, torch.float32)
    monkeypatch.setattr(precision, "fast_type", lambda kind: fast)
    with precision.autocast(CPU):
        assert (torch.ones(4, 4) @ torch.ones(4, 4)).dtype == fast
    assert (torch.ones(4, 4) @ torch.ones(4, 4)).dtype == torch.float32
