import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.codebook import (
    Codebook,
    CodebookError,
    _lloyd,
    _shares,
    codebook_size,
    fit_codebook,
    spherical_kmeans,
    with_further,
)
from tests.service.shards import unit


def clusters(count: int, each: int, dim: int, spread: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((count, dim))
    points = np.repeat(centres / np.linalg.norm(centres, axis=1, keepdims=True), each, axis=0)
    points = points + spread * rng.standard_normal(points.shape)
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def test_kmeans_finds_clear_clusters() -> None:
    points = clusters(16, 50, 32, 0.02)
    centroids = spherical_kmeans(points, 16)
    ids = Codebook(centroids).assign(points)
    assert np.allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-5)
    # Every true cluster lies whole in one code; restarts are not needed thanks to the moving of empty clusters.
    assert sum(len(set(ids[i * 50 : (i + 1) * 50])) == 1 for i in range(16)) >= 14


def test_every_iteration_serves_the_points_no_worse() -> None:
    points = clusters(40, 30, 24, 0.3)
    served = [float((points @ _lloyd(points, points[:32], i).T).max(1).mean()) for i in (0, 1, 2, 4, 8)]
    assert served == sorted(served)


def test_two_levels_serve_the_points_nearly_as_well_as_one() -> None:
    points = clusters(300, 12, 32, 0.15)
    rng = np.random.default_rng(1)
    points = points[rng.permutation(len(points))]
    chosen, one, two = (
        float((points @ centroids.T).max(1).mean())
        for centroids in (points[:256], _lloyd(points, points[:256], 10), spherical_kmeans(points, 256))
    )
    assert two > one - 0.2 * (one - chosen)  # clear clusters are the hard case: a group's border may go through one


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.floats(0, 1))
def test_shares_are_proportional_and_never_more_than_there_is(counts: list[int], part: float) -> None:
    total = int(part * sum(counts))
    if sum(counts) == 0:
        return
    shares = _shares(np.array(counts, np.int64), total)
    assert shares.sum() == total
    exact = np.array(counts) * total / sum(counts)
    assert (shares <= counts).all()
    assert (np.abs(shares - exact) <= 1).all()


def test_assign_agrees_with_the_textbook() -> None:
    points = clusters(20, 10, 16, 0.5)
    codebook = fit_codebook(points, 12, parts=4, iterations=3)
    slow = [max(range(12), key=lambda k: float(p @ codebook.centroids[k])) for p in points]
    assert codebook.assign(points).tolist() == slow
    codes = codebook.encode(points, codebook.assign(points))
    assert codebook.pq is not None
    for point, token, code in zip(points[:20], codebook.assign(points), codes, strict=False):
        residual = (point - codebook.centroids[token]).reshape(4, 4)
        for part in range(4):
            distance = ((codebook.pq[part] - residual[part]) ** 2).sum(1)
            assert distance[code[part]] == pytest.approx(distance.min(), abs=1e-6)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 7), st.sampled_from([0.0, 0.1, 0.4, 3.0]))
def test_tokens_are_the_best_of_all_sequences(seed: int, frames: int, penalty: float) -> None:
    codebook = Codebook(clusters(3, 1, 8, 0.0, seed), switch_penalty=penalty)
    points = clusters(frames, 1, 8, 0.0, seed + 1)
    similarity = points @ codebook.centroids.T

    def worth(path: tuple[int, ...]) -> float:
        changes = sum(a != b for a, b in itertools.pairwise(path))
        return float(sum(similarity[t, k] for t, k in enumerate(path))) - penalty * changes

    best = max(worth(path) for path in itertools.product(range(3), repeat=frames))
    assert worth(tuple(codebook.tokenize(points).tolist())) == pytest.approx(best, abs=1e-5)
    if penalty == 0.0:
        assert codebook.tokenize(points).tolist() == codebook.assign(points).tolist()


def test_codes_bring_embeddings_closer() -> None:
    points = clusters(60, 40, 32, 0.4)
    codebook = fit_codebook(points, 32, parts=8)
    ids = codebook.assign(points)
    rough = np.square(points - codebook.decode(ids, None)).sum(1).mean()
    fine = np.square(points - codebook.decode(ids, codebook.encode(points, ids))).sum(1).mean()
    assert fine < 0.5 * rough


def test_codes_are_tokens_of_further_codebooks() -> None:
    points = clusters(60, 40, 32, 0.4)
    first = fit_codebook(points, 32, parts=0)
    codebook = with_further(first, points, 3, seed=7)
    assert codebook.further is not None
    assert (codebook.parts, codebook.further.shape) == (6, (3, 32, 32))
    assert (codebook.centroids == first.centroids).all()
    assert codebook.nbytes == 4 * first.nbytes
    assert len({codebook.sha256, first.sha256, with_further(first, points, 2, seed=7).sha256}) == 3
    assert codebook.sha256 == with_further(first, points, 3, seed=7).sha256
    ids = codebook.tokenize(points)
    codes = codebook.encode(points, ids)
    assert (codes.shape, codes.dtype) == ((2_400, 6), np.uint8)
    for number, centroids in enumerate(codebook.further):
        tokens = codes[:, 2 * number].astype(int) + 256 * codes[:, 2 * number + 1].astype(int)
        assert tokens.tolist() == Codebook(centroids).tokenize(points).tolist()
    all_of_them = [codebook.centroids[ids]]
    all_of_them += [c[codes.view("<u2")[:, number]] for number, c in enumerate(codebook.further)]
    decoded = codebook.decode(ids, codes)
    assert decoded == pytest.approx(np.mean(all_of_them, axis=0), abs=1e-6)
    unit = decoded / np.linalg.norm(decoded, axis=1, keepdims=True)
    assert (unit * points).sum(1).mean() > first.cosines(points, ids).mean() + 0.005
    assert codebook.encode(points[:0], ids[:0]).shape == (0, 6)


def test_codes_that_no_codebook_makes_are_known() -> None:
    points = clusters(20, 30, 16, 0.3)
    several, rest = with_further(fit_codebook(points, 16, parts=0), points, 2), fit_codebook(points, 16, parts=4)
    for codebook in (several, rest):
        codes = codebook.encode(points, codebook.tokenize(points))
        codebook.check_codes(codes)
        codebook.check_codes(codes[:0])
        with pytest.raises(CodebookError, match="codes of 3 bytes a frame where they have 4"):
            codebook.check_codes(codes[:, :3])
    codes = several.encode(points, several.tokenize(points))
    codes[7, 2] = 16
    with pytest.raises(CodebookError, match="a code 16 where there are 16"):
        several.check_codes(codes)
    fit_codebook(points, 16, parts=0).check_codes(np.zeros((5, 0), np.uint8))


def test_the_same_points_give_the_same_codebook_and_others_another() -> None:
    points = clusters(20, 30, 16, 0.3)
    assert fit_codebook(points, 16, parts=4).sha256 == fit_codebook(points, 16, parts=4).sha256
    assert fit_codebook(points, 16, parts=4).sha256 != fit_codebook(points, 16, parts=4, seed=1).sha256
    assert fit_codebook(points, 16, parts=4).sha256 != fit_codebook(points, 16, parts=0).sha256


@pytest.mark.parametrize(("frames", "size"), [(0, 512), (5_000, 512), (24_300, 2_048), (79_000, 8_192), (10**9, 8_192)])
def test_size_grows_with_the_archive(frames: int, size: int) -> None:
    assert codebook_size(frames) == size


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(CodebookError, match="3 frames cannot carry 8"):
        spherical_kmeans(clusters(3, 1, 8, 0.1), 8)
    with pytest.raises(CodebookError):
        Codebook(np.zeros((0, 4), np.float32))
    with pytest.raises(CodebookError):
        Codebook(np.ones((4, 16), np.float32), np.zeros((4, 256, 3), np.float32))
    codebook = Codebook(clusters(4, 1, 8, 0.1))
    with pytest.raises(CodebookError, match=r"further codebooks of shape \(2, 3, 16\)"):
        Codebook(np.ones((4, 16), np.float32), further=np.ones((2, 3, 16), np.float32))
    with pytest.raises(CodebookError, match="further codebooks"):
        Codebook(np.ones((4, 16), np.float32), np.zeros((4, 256, 4), np.float32), further=np.ones((2, 4, 16)))
    with pytest.raises(CodebookError, match="nothing to make codes with"):
        codebook.encode(codebook.centroids, codebook.assign(codebook.centroids))


def test_centroids_that_are_gone_on_from_keep_their_numbers() -> None:
    rng = np.random.default_rng(5)
    points = rng.standard_normal((600, 8)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    before = fit_codebook(points[:300], 12, parts=2)
    after = fit_codebook(points, 12, parts=2, start=before.centroids)
    assert ((after.centroids @ before.centroids.T).argmax(1) == np.arange(12)).all()
    assert (points @ after.centroids.T).max(1).mean() > (points @ before.centroids.T).max(1).mean()
    with pytest.raises(CodebookError, match="12 centroids to begin with"):
        fit_codebook(points, 13, start=before.centroids)


@pytest.mark.parametrize("size", [2, 8, 40, 1_500])
def test_crowding_agrees_with_the_textbook(size: int) -> None:
    rng = np.random.default_rng(size)
    centroids = unit(rng, size, 8)
    near = np.zeros(size)
    for one in range(size):
        others = np.sort(np.delete(centroids @ centroids[one], one))[::-1]
        near[one] = others[:10].mean()
    codebook = Codebook(centroids)
    np.testing.assert_allclose(codebook.crowding, (near - near.mean()) / 2, atol=1e-6)
    somewhere = unit(rng, 5, 8)
    there = np.sort(somewhere @ centroids.T, axis=1)[:, -10:].mean(axis=1)
    np.testing.assert_allclose(codebook.crowding_at(somewhere), (there - near.mean()) / 2, atol=1e-6)


def test_a_centroid_by_itself_is_not_crowded() -> None:
    assert Codebook(np.eye(1, 4, dtype=np.float32)).crowding.tolist() == [0.0]
