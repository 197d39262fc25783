"""Where windows are cut, worked by hand."""

import numpy as np
import pytest

from model.pairalign.stitching import cut_of, stitch


@pytest.mark.parametrize(
    ("before", "after", "cut"),
    [
        ([1, 1, 2, 2, 3], [1, 1, 2, 2, 3], 2),  # all agree: the middle
        ([1, 1, 2, 2, 3], [9, 1, 8, 8, 8], 1),  # one agrees
        ([1, 1, 2, 2, 3], [1, 9, 9, 2, 9], 3),  # the nearer one
        ([1, 5, 2, 7, 3], [9, 5, 8, 7, 8], 1),  # as near: the earlier
        ([1, 1, 1, 1, 1], [2, 2, 2, 2, 2], 2),  # none
        ([1, 2], [1, 3], 0),
    ],
)
def test_cut(before: list[int], after: list[int], cut: int) -> None:
    assert cut_of(np.array(before), np.array(after)) == cut


def test_a_token_goes_on_from_window_to_window() -> None:
    windows = [(0, np.array([4, 4, 5, 6, 6, 6])), (3, np.array([7, 6, 8, 8]))]
    assert stitch(windows).tolist() == [4, 4, 5, 6, 6, 8, 8]


def test_three_windows() -> None:
    windows = [(0, np.arange(6)), (4, np.array([9, 5, 6, 7, 8, 9])), (8, np.array([8, 8, 1]))]
    assert stitch(windows).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 1]
