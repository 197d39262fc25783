import json
from pathlib import Path

import pytest

from service.evaluation.errors import TaskError
from service.evaluation.tasks import Place, read_task


def test_task_files_are_read(tmp_path: Path) -> None:
    good = {
        "queries": [
            {"clip": "a.flac", "source": ["s", 0.1, 0.2], "relevant": [["r", None, None], ["t", 1, 2]],
             "exclude": ["e"], "term": "one"},
            {"clip": "b.flac", "source": ["s"], "relevant": [["r"]], "oov": True},
        ]
    }  # fmt: skip
    (tmp_path / "t.json").write_text(json.dumps(good))
    one, two = read_task(tmp_path / "t.json")
    assert (one.exclude, one.term, one.oov) == ({"s", "e"}, "one", False)
    assert one.relevant == (Place("r"), Place("t", 1.0, 2.0))
    assert (two.source, two.term, two.oov) == (Place("s"), "", True)


@pytest.mark.parametrize(
    "text",
    [
        '{"queries": [{"clip": 1}]}',
        "[]",
        "",
        "[" * 100_000,
        '{"queries": [{"clip": "a", "source": [], "relevant": []}]}',
        '{"queries": [{"clip": "a", "source": ["s", "x", 1], "relevant": []}]}',
        '{"queries": [{"clip": "a", "source": ["s", 1, 2, 3], "relevant": []}]}',
    ],
)
def test_bad_ones_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(TaskError, match="is not a task file"):
        read_task(tmp_path / "bad.json")
    with pytest.raises(TaskError, match="is not a task file"):
        read_task(tmp_path / "none.json")
