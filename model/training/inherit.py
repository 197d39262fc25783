"""A student of attention that begins with the teacher's own lower blocks instead of random numbers.

Whisper's encoder looks at a whole window of 30 s from fixed positions, 50 times a second; the student looks at a second
around, from nowhere in particular, 25 times a second. What the positions did for a head is read off the teacher's
own scores, as a preference for each distance; of each block's wide layer the neurons that matter most are kept, and
what follows them is fitted anew to give what all of them gave (least squares); so is the projection to the targets.
Layers taken from a teacher as a start: Sanh et al. 2019 (DistilBERT), Chang et al. 2022 (DistilHuBERT).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.audio import SAMPLE_RATE
from model.encoder import AttentionShape
from model.training.data import Pack
from model.training.distil import Sampler
from model.training.features import GAP_FRAMES
from model.training.student import AttentionBlock, Student
from model.training.teacher import HEADS, MELS, WIDTH, WINDOW_S, Teacher, TeacherBlock

WINDOWS = 6  # of 30 s, that the teacher is watched on
BATCHES = 8  # of distillation, that the projection is fitted to
EDGE_ROWS = 100  # of a window's 1,500, left out where distances are measured
RIDGE = 1e-3


@torch.no_grad()
def inherit(shape: AttentionShape, teacher: Teacher, sampler: Sampler, seed: int = 0) -> Student:
    """The student with the teacher's first blocks, and a projection to the sampler's targets.

    Raises ValueError where the shape is not one that the teacher's blocks fit into.
    """
    if (shape.width, shape.heads) != (WIDTH, HEADS) or shape.blocks > len(teacher.blocks):
        raise ValueError(f"the teacher has blocks {WIDTH} wide of {HEADS} heads, {len(teacher.blocks)} of them")
    torch.manual_seed(seed)
    student = Student(shape)
    assert shape.FRONT_END.mels == MELS
    for number, layer in enumerate((teacher.conv1, teacher.conv2)):
        student.stem[number].load_state_dict(layer.state_dict())
    student.offset.copy_(teacher.positional_embedding.mean(0))
    rng = np.random.default_rng(seed)
    mel = teacher.log_mel(_windows(sampler.pack, sampler.train, rng))
    x = F.gelu(teacher.conv2(F.gelu(teacher.conv1(mel)))).transpose(1, 2) + teacher.positional_embedding
    for mine, its in zip(student.blocks, teacher.blocks, strict=False):
        assert isinstance(mine, AttentionBlock)
        assert isinstance(its, TeacherBlock)
        heard = its.attn_ln(x)
        for name in ("query", "key", "value", "out"):
            getattr(mine, name).load_state_dict(getattr(its.attn, name).state_dict())
        mine.attention_norm.load_state_dict(its.attn_ln.state_dict())
        mine.norm.load_state_dict(its.mlp_ln.state_dict())
        mine.distance.copy_(_preferences(its.attn.query(heard), its.attn.key(heard), shape.reach))
        x = x + its.attn(heard)
        wide, narrow = its.mlp[0], its.mlp[2]
        assert isinstance(wide, torch.nn.Linear)
        assert isinstance(narrow, torch.nn.Linear)
        neurons = F.gelu(wide(its.mlp_ln(x)))
        given = narrow(neurons)
        matters = neurons.flatten(0, 1).std(0) * narrow.weight.norm(dim=0)
        kept = matters.topk(shape.hidden).indices.sort().values
        mine.expand.weight.copy_(wide.weight[kept])
        mine.expand.bias.copy_(wide.bias[kept])
        if shape.hidden == len(matters):
            mine.contract.load_state_dict(narrow.state_dict())
        else:
            _fit(mine.contract, [(neurons[..., kept].flatten(0, 1)[::3], given.flatten(0, 1)[::3])])
        x = x + given
    student.norm.load_state_dict(teacher.ln_post.state_dict())
    batches = [sampler.draw(rng) for _ in range(BATCHES)]
    _fit(student.head, [(student.hidden(student.log_mel(b.waveform))[b.valid], b.target[b.valid]) for b in batches])
    return student


def _windows(pack: Pack, recordings: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Windows of 30 s filled with recordings: float32 [windows, 480000]."""
    out = torch.zeros(WINDOWS, WINDOW_S * SAMPLE_RATE)
    for row in out:
        at = 0
        while at < len(row):
            samples = pack.waveform(int(rng.choice(recordings)))[: len(row) - at].astype(np.float32) / 32767.0
            row[at : at + len(samples)] = torch.from_numpy(samples)
            at += len(samples) + GAP_FRAMES * SAMPLE_RATE // 25
    return out


def _preferences(query: Tensor, key: Tensor, reach: int) -> Tensor:
    """Mean score of each head at each distance, of rows two to a frame, less its highest: [heads, 2 * reach + 1]."""
    batch, rows, _ = query.shape
    query, key = (y.view(batch, rows, HEADS, WIDTH // HEADS).transpose(1, 2) for y in (query, key))
    at = torch.arange(EDGE_ROWS, rows - EDGE_ROWS)
    means = [
        (query[:, :, at] * key[:, :, at + 2 * d]).sum(-1).mean((0, 2)) / (WIDTH // HEADS) ** 0.5
        for d in range(-reach, reach + 1)
    ]
    out = torch.stack(means, 1)
    return out - out.amax(1, keepdim=True)


def _fit(layer: torch.nn.Linear, pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Least squares with a small ridge: the layer gives what follows from what it is given."""
    inputs = layer.in_features + 1
    gram = torch.zeros(inputs, inputs, dtype=torch.double)
    moment = torch.zeros(inputs, layer.out_features, dtype=torch.double)
    for given, wanted in pairs:
        x = torch.cat([given, torch.ones(len(given), 1)], 1).double()
        gram += x.T @ x
        moment += x.T @ wanted.double()
    solved = torch.linalg.solve(gram + RIDGE * gram.diagonal().mean() * torch.eye(inputs, dtype=torch.double), moment)
    layer.weight.copy_(solved[:-1].T.float())
    layer.bias.copy_(solved[-1].float())
