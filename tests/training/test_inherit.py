"""A student that begins with the teacher's blocks: what is taken, what is fitted, and that it hears from the start."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model.encoder import AttentionShape, ConvolutionShape
from model.training.inherit import inherit
from model.training.student import Student
from model.training.teacher import Teacher
from tests.training.corpus import random_teacher, sampler_of

pytestmark = pytest.mark.training

WHOLE = AttentionShape(hidden=2_048, blocks=1, reach=4, dim=16)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return random_teacher()


def cosine(student: Student, work: Path) -> float:
    """Of a fresh batch with its targets."""
    batch = sampler_of(work).draw(np.random.default_rng(99), 16)
    with torch.inference_mode():
        embedding = student.eval()(batch.waveform)
    return float((embedding * batch.target).sum(-1)[batch.valid].mean())


def test_layers_are_the_teachers_and_the_projection_is_fitted(work: Path, teacher: Teacher) -> None:
    student = inherit(WHOLE, teacher, sampler_of(work))
    (mine,), its = student.blocks, teacher.blocks[0]
    for ours, theirs in [
        (student.stem[1], teacher.conv2), (mine.key, its.attn.key), (mine.out, its.attn.out),
        (mine.norm, its.mlp_ln), (mine.expand, its.mlp[0]), (mine.contract, its.mlp[2]),
    ]:  # fmt: skip
        assert torch.equal(ours.weight, theirs.weight)
    assert mine.distance.shape == (8, 9)
    assert torch.equal(mine.distance.amax(1), torch.zeros(8))
    torch.manual_seed(1)
    assert cosine(student, work) > cosine(Student(WHOLE), work) + 0.2


def test_preferences_are_mean_scores_by_distance() -> None:
    from model.training.inherit import EDGE_ROWS, _preferences

    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(1, 260, 512, generator=generator), torch.randn(1, 260, 512, generator=generator)
    found = _preferences(query, key, 3)
    expected = torch.zeros(8, 7)
    for head in range(8):
        part = slice(64 * head, 64 * head + 64)
        for d in range(-3, 4):
            rows = range(EDGE_ROWS, 260 - EDGE_ROWS)
            scores = [float(query[0, i, part] @ key[0, i + 2 * d, part]) / 8.0 for i in rows]
            expected[head, d + 3] = sum(scores) / len(scores)
    expected -= expected.amax(1, keepdim=True)
    assert torch.allclose(found, expected, atol=1e-5)


def test_of_a_wide_layer_what_matters_is_kept_and_refitted(work: Path, teacher: Teacher) -> None:
    student = inherit(AttentionShape(hidden=512, blocks=1, reach=4, dim=16), teacher, sampler_of(work))
    mine, its = student.blocks[0], teacher.blocks[0]
    x = torch.randn(400, 512, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = its.mlp(x)
        fitted = mine.contract(torch.nn.functional.gelu(mine.expand(x)))
        # Without the fit: the kept neurons with the weights that they had.
        rows = [int((its.mlp[0].weight == row).all(1).nonzero()) for row in mine.expand.weight]
        plain = torch.nn.functional.gelu(mine.expand(x)) @ its.mlp[2].weight[:, rows].T + its.mlp[2].bias
    assert len(set(rows)) == 512
    assert (fitted - whole).square().mean() < 0.9 * (plain - whole).square().mean()


def test_a_shape_that_the_blocks_do_not_fit_is_refused(work: Path, teacher: Teacher) -> None:
    for shape in (AttentionShape(width=256), AttentionShape(heads=4), AttentionShape(blocks=7)):
        with pytest.raises(ValueError, match="the teacher has blocks 512 wide"):
            inherit(shape, teacher, sampler_of(work))
    with pytest.raises(ValueError, match="cannot be shared"):
        AttentionShape(width=10, heads=4)
    with pytest.raises(ValueError, match="odd"):
        ConvolutionShape(kernel=4)
