"""Folders of the server that may be indexed over HTTP: those below the roots in the settings, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from indexer.discover import lies_within
from service.errors import FolderForbidden


def allowed(folder: str, roots: Sequence[Path]) -> Path:
    """A folder, or a file, that really lies in one of `roots`; a relative one is looked for in each.

    Raises FolderForbidden: where it does not, where nothing is there, and where there are no roots. What lies outside
    is not told apart from what does not exist.
    """
    if not roots:
        raise FolderForbidden("no folder of the server may be indexed: SAYAGAIN_ROOTS names those that may", "folder")
    if "\0" not in folder:
        for root in roots:
            path = Path(os.path.abspath(root / folder))
            if lies_within(path, roots) and path.exists():
                return path
    raise FolderForbidden("there is no such folder among those that may be indexed", "folder")
