"""Each loss against the sum it stands for, written out."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import log_softmax, normalize

from model.training import losses
from model.training.pairs import ctc_both_ways

pytestmark = pytest.mark.training


def unit(*shape: int, seed: int = 0) -> Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def all_paths(log_probability: np.ndarray, target: list[int]) -> float:
    """-log of the summed probability of every path that collapses to the target."""
    total = 0.0
    for path in itertools.product(range(log_probability.shape[1]), repeat=len(log_probability)):
        if [token for token, _ in itertools.groupby(path)] == target:
            total += float(np.exp(log_probability[np.arange(len(path)), path].sum()))
    return -np.log(total) if total else np.inf


def test_frame_contrast_agrees_with_the_textbook() -> None:
    embedding, target = unit(9, 5), unit(9, 5, seed=1)
    place = torch.tensor([0, 1, 2, 3, 20, 21, 22, 40, 41])
    total = 0.0
    for i in range(9):
        terms = [
            float(torch.exp(embedding[i] @ target[j] / 0.1))
            for j in range(9)
            if j == i or abs(int(place[i] - place[j])) > 2
        ]
        total -= float(embedding[i] @ target[i]) / 0.1 - np.log(sum(terms))
    assert float(losses.frame_contrast(embedding, target, place, 0.1, 2)) == pytest.approx(total / 9, rel=1e-5)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_path_contrast_agrees_with_a_loop(temperature: float) -> None:
    embedding = unit(12, 4)
    word = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2, -1, -1, 0])
    anchor = torch.tensor([0, 0, 3, 8, 11])  # the first anchor has two positives
    positive = torch.tensor([2, 1, 6, 7, 0])
    total = 0.0
    for a, p in zip(anchor.tolist(), positive.tolist(), strict=True):
        kept = [p] + [j for j in range(12) if word[j] != word[a]]
        terms = [float(torch.exp(embedding[a] @ embedding[j] / temperature)) for j in kept]
        total -= np.log(terms[0] / sum(terms))
    found = losses.path_contrast(embedding, word, anchor, positive, temperature)
    assert float(found) == pytest.approx(total / 5, rel=1e-5)


def test_path_contrast_of_one_word_alone_asks_for_nothing() -> None:
    embedding = unit(4, 3).requires_grad_()
    loss = losses.path_contrast(embedding, torch.zeros(4), torch.tensor([0, 1]), torch.tensor([2, 3]), 0.1)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert embedding.grad is not None
    assert torch.equal(embedding.grad, torch.zeros(4, 3))


def plain_sinkhorn(scores: np.ndarray, temperature: float, iterations: int) -> np.ndarray:
    out = np.exp(scores / temperature)
    n, size = out.shape
    for _ in range(iterations):
        out *= n / size / out.sum(0, keepdims=True)
        out /= out.sum(1, keepdims=True)
    return out


@pytest.mark.parametrize("iterations", [1, 3, 500])
def test_sinkhorn_agrees_with_numpy_and_balances(iterations: int) -> None:
    # All frames lie near the first code: without balance they would all take it.
    scores = unit(40, 6) @ unit(8, 6, seed=1).T
    scores[:, 0] = 0.95
    found = losses.sinkhorn(scores, 0.2, iterations).numpy()
    assert found == pytest.approx(plain_sinkhorn(scores.double().numpy(), 0.2, iterations), rel=1e-3, abs=1e-6)
    assert found.sum(1) == pytest.approx(np.ones(40), abs=1e-5)
    if iterations == 500:
        assert found.sum(0) == pytest.approx(np.full(8, 40 / 8), rel=1e-3)


def test_sinkhorn_survives_a_sharp_temperature() -> None:
    found = losses.sinkhorn(unit(50, 6) @ unit(16, 6, seed=1).T, 0.001, 5)
    assert torch.isfinite(found).all()
    assert found.sum(1).numpy() == pytest.approx(np.ones(50), abs=1e-4)


def test_swapped_prediction_agrees_with_a_loop() -> None:
    scores, codes = unit(7, 5), torch.softmax(torch.randn(7, 5, generator=torch.Generator().manual_seed(2)), 1)
    anchor, positive = torch.tensor([0, 0, 4, 6]), torch.tensor([1, 2, 3, 5])
    total = 0.0
    for a, p in zip(anchor.tolist(), positive.tolist(), strict=True):
        predicted = np.exp(scores[a].numpy() / 0.1)
        total -= sum(float(codes[p, k]) * np.log(predicted[k] / predicted.sum()) for k in range(5))
    assert float(losses.swapped_prediction(scores, codes, anchor, positive, 0.1)) == pytest.approx(total / 4, rel=1e-5)


def test_collapse_keeps_one_of_each_run() -> None:
    assert losses.collapse(torch.tensor([3, 3, 1, 3, 3, 3, 0])).tolist() == [3, 1, 3, 0]
    assert losses.collapse(torch.tensor([5])).tolist() == [5]


@pytest.mark.parametrize("seed", range(5))
def test_blank_free_ctc_agrees_with_all_paths(seed: int) -> None:
    rng = np.random.default_rng(seed)
    log_probability = log_softmax(torch.from_numpy(rng.standard_normal((6, 6, 3)) * 2), -1)
    frames = [6, 5, 3, 1, 4, 2]
    targets = [[0, 1, 2], [2], [0, 2, 0], [1], [1, 0], [2, 0, 1]]  # the last is longer than its frames
    padded = torch.tensor([t + [0] * (3 - len(t)) for t in targets])
    lengths = torch.tensor([len(t) for t in targets])
    found = losses.blank_free_ctc(log_probability, torch.tensor(frames), padded, lengths)
    expected = [all_paths(log_probability[i, : frames[i]].numpy(), targets[i]) for i in range(6)]
    assert np.isinf(expected[-1])
    assert found.numpy() == pytest.approx(expected, rel=1e-6)


def all_alignments(log_probability: np.ndarray, target: list[int], optional: int) -> float:
    """-log of the summed probability of every way to say the target, with or without each `optional` token."""
    total = 0.0
    places = [i for i, token in enumerate(target) if token == optional]
    for left_out in itertools.product([False, True], repeat=len(places)):
        dropped = {place for place, out in zip(places, left_out, strict=True) if out}
        said = [token for i, token in enumerate(target) if i not in dropped]
        for state in itertools.product(range(len(said)), repeat=len(log_probability)):
            steps = np.diff([-1, *state, len(said)])
            if said and steps[0] == 1 and steps[-1] == 1 and set(steps[1:-1].tolist()) <= {0, 1}:
                total += float(np.exp(sum(log_probability[t, said[s]] for t, s in enumerate(state))))
    return -np.log(total) if total else np.inf


@pytest.mark.parametrize("target", [[0, 1, 0, 2, 0], [0, 1, 2, 0], [1, 0, 1], [0, 2], [1, 0], [2], [0, 1, 2, 1, 0]])
@pytest.mark.parametrize("frames", [1, 2, 3, 5])
def test_an_optional_token_may_be_left_out(target: list[int], frames: int) -> None:
    log_probability = log_softmax(torch.randn(1, frames, 3, generator=torch.Generator().manual_seed(frames)), -1)
    padded = torch.tensor([[*target, 0, 0]])
    found = losses.blank_free_ctc(
        log_probability, torch.tensor([frames]), padded, torch.tensor([len(target)]), optional=0
    )
    expected = all_alignments(log_probability[0].double().numpy(), target, 0)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_blank_free_ctc_sums_to_one_over_all_targets() -> None:
    log_probability = log_softmax(torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(1)).double(), -1)
    targets = {tuple(t for t, _ in itertools.groupby(path)) for path in itertools.product(range(3), repeat=4)}
    total = sum(
        float(
            torch.exp(
                -losses.blank_free_ctc(log_probability, torch.tensor([4]), torch.tensor([t]), torch.tensor([len(t)]))
            )
        )
        for t in targets
    )
    assert total == pytest.approx(1.0)


def test_the_gradient_of_blank_free_ctc_is_that_of_small_steps() -> None:
    frames, target, lengths = torch.tensor([5, 3]), torch.tensor([[0, 2, 1], [1, 2, 0]]), torch.tensor([3, 2])

    def loss(logits: Tensor) -> Tensor:
        return losses.blank_free_ctc(log_softmax(logits, -1), frames, target, lengths)

    logits = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (logits,))


def test_words_too_short_for_their_target_leave_gradients_finite() -> None:
    lengths = [6, 6, 2, 4]  # words 2 and 3 are a pair; the tokens of word 3 do not fit into 2 frames
    scores = [unit(n, 5, seed=n + i).requires_grad_() for i, n in enumerate(lengths)]
    tokens = [torch.tensor(t) for t in ([0, 0, 1, 1, 2, 2], [0, 1, 1, 3, 3, 3], [4, 4], [0, 1, 2, 3])]
    loss = ctc_both_ways(scores, tokens, 0.1)
    each = []
    for i in (0, 1, 3):
        target = losses.collapse(tokens[i ^ 1]).tolist()
        each.append(all_paths(log_softmax(scores[i].detach() / 0.1, -1).numpy(), target) / lengths[i])
    assert float(loss.detach()) == pytest.approx(np.mean(each), rel=1e-4)
    loss.backward()
    for i, score in enumerate(scores):
        assert score.grad is not None
        assert torch.isfinite(score.grad).all()
        assert bool(score.grad.abs().sum() > 0) == (i != 2)


def test_where_no_word_fits_the_weight_switches_the_loss_off() -> None:
    scores = [unit(2, 5, seed=i).requires_grad_() for i in range(2)]
    # No path of two frames has three tokens.
    ctc = ctc_both_ways(scores, [torch.tensor([0, 1, 2])] * 2, 0.1)
    assert torch.isinf(ctc)
    weight = losses.adaptive_weight(torch.tensor(2.0), ctc)
    total = weight * torch.where(weight > 0, ctc, torch.zeros_like(ctc)) + scores[0].sum()
    total.backward()
    assert torch.isfinite(total)
    assert all(score.grad is None or torch.isfinite(score.grad).all() for score in scores)


def test_best_aligned_agrees_with_a_loop() -> None:
    rng = np.random.default_rng(0)
    anchor, positive = torch.from_numpy(rng.integers(0, 9, 40)), torch.from_numpy(rng.integers(0, 30, 40))
    anchor[anchor == 5] = 6  # frame 5 is aligned to nothing
    similarity = torch.from_numpy(rng.choice([0.1, 0.5, 0.9], 40).astype(np.float32))  # with many equals
    best: dict[int, int] = {}
    for pair, a in enumerate(anchor.tolist()):
        if a not in best or similarity[pair] > similarity[best[a]]:
            best[a] = pair
    found = losses.best_aligned(similarity, anchor, positive, 12)
    assert found[0].tolist() == sorted(best)
    assert found[1].tolist() == [int(positive[best[a]]) for a in sorted(best)]


def test_framewise_agrees_with_a_loop() -> None:
    scores, tokens = unit(6, 4), torch.tensor([0, 3, 1, 2, 2, 0])
    anchor, positive = torch.tensor([0, 2, 5]), torch.tensor([4, 1, 3])
    total = 0.0
    for a, p in zip(anchor.tolist(), positive.tolist(), strict=True):
        predicted = np.exp(scores[a].numpy() / 0.1)
        total -= np.log(predicted[tokens[p]] / predicted.sum())
    assert float(losses.framewise(scores, tokens, anchor, positive, 0.1)) == pytest.approx(total / 3, rel=1e-5)


def test_adaptive_weight_makes_the_other_count_as_its_share() -> None:
    contrast, other = torch.tensor(3.0, requires_grad=True), torch.tensor(-8.0, requires_grad=True)
    weight = losses.adaptive_weight(contrast, other, 0.5)
    assert float((weight * other).detach()) == pytest.approx(-1.5)
    assert not weight.requires_grad
    (weight * other).backward()
    assert contrast.grad is None
    assert float(other.grad) == pytest.approx(float(weight))  # that of a constant weight
    for amiss in (torch.inf, -torch.inf, torch.nan):
        assert float(losses.adaptive_weight(contrast, torch.tensor(amiss))) == 0.0
    assert np.isfinite(float(losses.adaptive_weight(contrast, torch.tensor(0.0))))
