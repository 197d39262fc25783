"""The decoder: its parameters, its cache, and what it may write."""

import numpy as np
import pytest
import torch

from model.pairalign.shape import DecoderShape
from model.training.pairalign.batches import collate
from model.training.pairalign.decoder import Decoder, start_from
from model.training.pairalign.targets import Sequence, collapsed

pytestmark = pytest.mark.training

SHAPE = DecoderShape(
    size=11, dim=8, width=16, heads=2, hidden=24, blocks=2, rates=2, window_frames=20, overlap_frames=6, max_tokens=12
)


CENTROIDS = np.eye(11, 8, dtype=np.float32)
CENTROIDS[8:] = CENTROIDS[:3]


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    torch.manual_seed(4)
    made = Decoder(SHAPE, CENTROIDS)
    with torch.no_grad():
        made.head.bias[SHAPE.bos] = 1.0  # so that it ends now and then
        made.head.weight *= 4
    return made.eval()


def test_parameters_have_the_names_and_sides_of_the_shape(decoder: Decoder) -> None:
    assert {name: tuple(p.shape) for name, p in decoder.named_parameters()} == dict(SHAPE.parameters())


def test_the_cache_gives_what_the_whole_prefix_gives(decoder: Decoder) -> None:
    heard = torch.nn.functional.normalize(torch.randn(30, 20, 8), dim=-1)
    frames = torch.randint(1, 21, (30,))
    rate = torch.randint(2, (30,))
    memory = decoder.remember(heard, frames)
    written = decoder.write(memory, rate)
    assert len(set(written.lengths.tolist())) > 3  # of several lengths, else this shows little
    assert written.ended.any()
    for row in range(30):
        alone = decoder.remember(heard[row : row + 1, : frames[row]], frames[row : row + 1])
        tokens, starts = [SHAPE.bos], [0]
        while len(tokens) <= SHAPE.max_tokens:  # the whole prefix anew for each token
            logits, pointer = decoder(alone, torch.tensor([tokens]), torch.tensor([starts]), rate[row : row + 1])
            last = logits[0, -1].detach().clone()
            last[tokens[-1]] = -torch.inf
            where = pointer[0, -1].detach().clone()
            if len(tokens) > 1:
                where[: starts[-1] + 1] = -torch.inf
                if int(last.argmax()) == SHAPE.bos or not torch.isfinite(where).any():
                    break
            tokens.append(int(last.argmax()))
            starts.append(0 if len(starts) == 1 else int(where.argmax()))
        n = int(written.lengths[row])
        assert written.tokens[row, :n].tolist() == tokens[1:]
        assert written.starts[row, :n].tolist() == starts[1:]


def test_what_is_written_is_a_collapsed_sequence(decoder: Decoder) -> None:
    memory = decoder.remember(torch.randn(40, 20, 8), torch.full((40,), 20))
    written = decoder.write(memory, torch.zeros(40, dtype=torch.int64))
    for tokens, starts, n in zip(written.tokens, written.starts, written.lengths, strict=True):
        assert 1 <= n <= SHAPE.max_tokens
        assert starts[0] == 0
        assert (starts[1:n] > starts[: n - 1]).all()
        assert (tokens[1:n] != tokens[: n - 1]).all()
        assert (tokens[:n] < SHAPE.size).all()


def test_padding_does_not_matter(decoder: Decoder) -> None:
    heard = torch.randn(1, 9, 8)
    padded = torch.cat([heard, torch.randn(1, 11, 8)], 1)
    rate = torch.zeros(1, dtype=torch.int64)
    one = decoder.write(decoder.remember(heard, torch.tensor([9])), rate)
    other = decoder.write(decoder.remember(padded, torch.tensor([9])), rate)
    assert one.tokens.tolist() == other.tokens.tolist()
    assert one.starts.tolist() == other.starts.tolist()


def test_a_batch_enters_bos_first_and_wants_eos_last() -> None:
    heard = [np.zeros((4, 8), np.float32), np.zeros((20, 8), np.float32)]
    long = collapsed(np.arange(20) % 2)  # more tokens than the decoder writes
    batch = collate(heard, [Sequence(np.array([3, 5]), np.array([0, 2])), long], [0, 1], SHAPE)
    assert batch.frames.tolist() == [4, 20]
    assert batch.entered[0, :3].tolist() == [SHAPE.bos, 3, 5]
    assert batch.entered_at[0, :3].tolist() == [0, 0, 2]
    assert batch.wanted[0, :4].tolist() == [3, 5, SHAPE.bos, -100]
    assert batch.pointed[0, :3].tolist() == [-100, 2, -100]
    assert batch.wanted.shape[1] == SHAPE.max_tokens + 1
    assert (batch.wanted[1] != SHAPE.bos).all()  # cut off, so its end is not known


def test_tokens_begin_as_projections_of_their_centroids() -> None:
    weight = start_from(CENTROIDS, SHAPE).token.weight.detach()
    assert torch.equal(weight[8], weight[0])
    assert not torch.equal(weight[1], weight[0])
