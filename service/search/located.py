"""Arrays side by side, an entry for each of many places in the segments of an archive's view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Located:
    """Which `segment` of which `part` of the view; int64 [entries]. Subclasses add columns."""

    part: Int64
    segment: Int64

    def __len__(self) -> int:
        return len(self.part)

    @classmethod
    def nothing(cls) -> Self:
        """No entry."""
        return cls(*(np.zeros(0, np.int64) for _ in fields(cls)))

    @classmethod
    def joined(cls, several: Sequence[Self]) -> Self:
        """All of them in one."""
        every = [cls.nothing(), *several]
        return cls(*(np.concatenate([getattr(one, field.name) for one in every]) for field in fields(cls)))

    def take(self, chosen: npt.NDArray[np.integer] | npt.NDArray[np.bool_]) -> Self:
        """Some of them."""
        return type(self)(*(getattr(self, field.name)[chosen] for field in fields(self)))
