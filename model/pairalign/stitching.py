"""Windows that overlap become one sequence: cut where both say the same, as near to the middle as that is."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


def cut_of(before: Ids, after: Ids) -> int:
    """The first frame of an overlap that the later window gives, from both windows' ids of it [overlap].

    Of the frames at which both give the same token the one nearest to the middle (of two as near, the earlier): there
    one token goes on from window to window. Without such a frame the middle.
    """
    middle = len(before) // 2
    same = np.flatnonzero(before == after)
    return middle if len(same) == 0 else int(same[np.abs(same - middle).argmin()])


def stitch(windows: list[tuple[int, Ids]]) -> Ids:
    """Framewise ids of a segment, from the first frame and the ids of each window; each reaches into the next."""
    out = windows[0][1].copy()
    for first, ids in windows[1:]:
        overlap = len(out) - first
        cut = first + cut_of(out[first:], ids[:overlap])
        out = np.concatenate([out[:cut], ids[cut - first :]])
    return out
