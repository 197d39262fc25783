"""The losses, the corruption and the targets of PairAlign, against cases worked by hand."""

import math

import numpy as np
import pytest
import torch

from model.training.pairalign.corruption import Corruption, corrupt
from model.training.pairalign.losses import (
    expected_length,
    length_loss,
    likelihood_contrast,
    log_likelihood,
    pointer_loss,
    token_loss,
)
from model.training.pairalign.targets import collapsed, moved

pytestmark = pytest.mark.training

K = 3  # so EOS, and BOS among the entries, is 3


def logits_of(*rows: list[float]) -> torch.Tensor:
    """Log probabilities of one sequence's steps."""
    return torch.tensor([rows]).log()


def test_token_loss_leaves_out_the_entry_before() -> None:
    logits = logits_of([0.1, 0.4, 0.4, 0.1], [0.5, 0.2, 0.2, 0.1])
    entered, wanted = torch.tensor([[K, 0]]), torch.tensor([[0, 1]])
    # The first step may not stop (EOS has BOS's number), the second may not say 0 again.
    by_hand = -(math.log(0.1 / 0.9) + math.log(0.2 / 0.5)) / 2
    assert float(token_loss(logits, entered, wanted)) == pytest.approx(by_hand, rel=1e-4)


def test_token_loss_allows_the_entry_where_it_is_the_target() -> None:
    logits = logits_of([0.25, 0.25, 0.25, 0.25])
    assert float(token_loss(logits, torch.tensor([[1]]), torch.tensor([[1]]))) == pytest.approx(math.log(4), rel=1e-4)


def test_nothing_is_learned_where_nothing_is_wanted() -> None:
    logits = logits_of([0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1])
    one = token_loss(logits[:, :1], torch.tensor([[K]]), torch.tensor([[2]]))
    both = token_loss(logits, torch.tensor([[K, 2]]), torch.tensor([[2, -100]]))
    assert float(one) == pytest.approx(float(both))


def test_pointer_chooses_among_later_frames() -> None:
    scores = torch.tensor([[0.0, 0.2, 0.3, 0.5]]).log().clamp(min=-20.0)[None]
    loss = pointer_loss(scores, torch.tensor([[1]]), torch.tensor([[3]]))
    assert float(loss) == pytest.approx(-math.log(0.5 / 0.8), rel=1e-4)
    assert float(pointer_loss(scores, torch.tensor([[3]]), torch.tensor([[3]]))) == 0.0
    assert float(pointer_loss(scores, torch.tensor([[0]]), torch.tensor([[-100]]))) == 0.0


def test_likelihood_is_a_mean_over_tokens_and_eos() -> None:
    logits = logits_of([0.5, 0.2, 0.2, 0.1], [0.1, 0.1, 0.1, 0.7], [0.9, 0.0, 0.0, 0.1])
    value = log_likelihood(logits, torch.tensor([[0, K, -100]]))
    assert float(value) == pytest.approx((math.log(0.5) + math.log(0.7)) / 2, rel=1e-4)


def test_contrast_wants_the_paired_sequence_to_be_likelier() -> None:
    scores = torch.tensor([[-1.0, -2.0], [-3.0, -1.5]])
    by_hand = (math.log1p(math.exp(-1 / 0.5)) + math.log1p(math.exp(-1.5 / 0.5))) / 2
    assert float(likelihood_contrast(scores, 0.5)) == pytest.approx(by_hand, rel=1e-5)
    assert float(likelihood_contrast(scores.T, 0.5)) > by_hand


def test_expected_length_of_a_coin_that_stops() -> None:
    # Three tokens and EOS; after the first, each step stops with one half: 1 + 1/2 + 1/4 + 1/8.
    half = [0.2, 0.2, 0.1, 0.5]
    logits, wanted = logits_of(half, half, half, half), torch.tensor([[0, 1, 2, K]])
    assert float(expected_length(logits, wanted)) == pytest.approx(1.875)
    assert float(length_loss(logits, wanted)) == pytest.approx((3 - 1.875) / 3)


def test_length_loss_vanishes_for_the_right_length() -> None:
    go, stop = [0.4, 0.3, 0.3, 1e-9], [1e-9, 1e-9, 1e-9, 1.0]
    loss = length_loss(logits_of(go, go, stop), torch.tensor([[0, 1, K]]))
    assert float(loss) == pytest.approx(0.0, abs=1e-6)
    assert float(length_loss(logits_of(go, stop, go), torch.tensor([[0, 1, K]]))) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (Corruption(0, 0, 0, 0), [K, 0, 1, 2]),
        (Corruption(0, 1, 0, 0), [K, K, K, K]),
        (Corruption(0, 0, 1, 0), [K, K, 0, 1]),
    ],
)
def test_corruption_of_a_prefix(spec: Corruption, expected: list[int]) -> None:
    tokens, starts = torch.tensor([[K, 0, 1, 2]]), torch.tensor([[0, 0, 4, 9]])
    out, at = corrupt(tokens, starts, K, torch.tensor([10]), spec, torch.Generator().manual_seed(0))
    assert out[0].tolist() == expected
    assert at.tolist() == starts.tolist()


def test_corruption_replaces_and_shifts_within_bounds() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens, starts = torch.zeros((200, 4), dtype=torch.int64), torch.tensor([[0, 0, 4, 9]]).expand(200, 4)
    out, at = corrupt(tokens, starts, 50, torch.full((200,), 10), Corruption(1, 0, 0, 1), generator)
    assert (out[:, 0] == 0).all()
    assert (out[:, 1:] < 50).all()
    assert (out[:, 1:] != 0).float().mean() > 0.9
    assert set(at[:, 1].tolist()) == {0, 1}
    assert set(at[:, 2].tolist()) == {3, 5}
    assert set(at[:, 3].tolist()) == {8, 9}


def test_corruption_has_its_share() -> None:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.arange(40).repeat(500, 1)
    out, _ = corrupt(tokens, tokens, 1_000, torch.full((500,), 99), Corruption(0.1, 0.05, 0.05, 0), generator)
    assert float((out != tokens)[:, 1:].float().mean()) == pytest.approx(0.2, abs=0.01)


def test_collapsed() -> None:
    sequence = collapsed(np.array([5, 5, 7, 7, 7, 5]))
    assert sequence.tokens.tolist() == [5, 7, 5]
    assert sequence.starts.tolist() == [0, 2, 5]


def test_a_slower_hearing_gets_the_tokens_at_its_own_times() -> None:
    sound = np.eye(4, dtype=np.float32)
    its, mine = sound[[0, 1, 2, 3]], sound[[0, 0, 1, 2, 2, 2, 3]]
    sequence = moved(collapsed(np.array([8, 8, 9, 6])), mine, its)
    assert sequence.tokens.tolist() == [8, 9, 6]
    assert sequence.starts.tolist() == [0, 3, 6]


def test_tokens_that_find_no_frame_are_dropped() -> None:
    sound = np.eye(3, dtype=np.float32)
    sequence = moved(collapsed(np.array([1, 2, 3])), sound[[0, 2]], sound[[0, 1, 2]])
    assert len(sequence.tokens) == 2
    assert sequence.tokens[-1] == 3
