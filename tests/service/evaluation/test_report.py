import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from service.evaluation import plots
from service.evaluation.detections import Answered
from service.evaluation.errors import PlotsMissing, ReportError
from service.evaluation.figures import Level, levels
from service.evaluation.judging import Ranked, verdicts
from service.evaluation.names import RecordingNames
from service.evaluation.report import CURVE_POINTS, Report, curves_json
from service.evaluation.tasks import Place, TaskQuery
from tests.service.evaluation.example import HITS, QUERY

NAMES = RecordingNames(["own.opus", "a.opus", "b.opus", "c.opus"])
LEVELS = levels([QUERY], {"q.flac": HITS}, 10, 100.0)
ANSWERS = [Answered(QUERY, tuple(HITS), tuple(verdicts(QUERY, HITS, True)), 0.1)]


def many() -> dict[str, Level]:
    """Forty queries over 500 recordings, whose scores are what they say."""
    rng = np.random.default_rng(0)
    queries, answers = [], {}
    for number in range(40):
        scores = np.sort(rng.beta(0.2, 1.5, 500))[::-1]
        right = rng.random(500) < scores
        relevant = tuple(Place(str(n), 0.0, 1.0) for n in np.flatnonzero(right))
        queries.append(TaskQuery(str(number), Place("x"), frozenset({"x"}), relevant, False))
        answers[str(number)] = [Ranked(str(n), 0.0, 1.0, float(score)) for n, score in enumerate(scores)]
    return levels(queries, answers, 500, 1_800.0)


def write(folder: Path, with_plots: bool = True) -> None:
    Report(folder, with_plots).write({"figures": {}}, LEVELS, ANSWERS, NAMES, "example, archive one")


def test_a_report_has_all_its_parts(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "report"
    write(folder)
    assert sorted(os.listdir(folder)) == [
        "detections.tsv", "figures.json", "kwslist.xml", "misses.png", "precision.png", "reliability.png", "twv.png",
    ]  # fmt: skip
    assert json.loads((folder / "figures.json").read_text()) == {"figures": {}}
    assert (folder / "kwslist.xml").read_text().endswith("</kwslist>\n")
    assert len((folder / "detections.tsv").read_text().splitlines()) == 1 + len(HITS)
    write(folder)  # again, over the first


def test_plots_are_pictures_of_a_sensible_size() -> None:
    from matplotlib.image import imread

    pictures = plots.draw(many(), "a $title$ with\nodd characters_^{ \u0d15\u5b57")
    for name, png in pictures.items():
        pixels = imread(io.BytesIO(png))
        height, width = pixels.shape[:2]
        assert 400 <= height <= 1_000, name
        assert height <= width <= 2 * height, name
        # Something is drawn, and most is background.
        assert 0.02 < (pixels[..., :3].min(axis=-1) < 0.9).mean() < 0.6, name


@pytest.mark.parametrize(
    "levels",
    [
        {"file": LEVELS["file"]},
        levels([QUERY], {}, 10, 100.0),  # nothing was answered
        levels([QUERY], {"q.flac": HITS[1:2]}, 10, 100.0),  # no false alarm at all
        levels([QUERY], {"q.flac": [Ranked("z", 0, 1, -5.0)]}, 10, 100.0),  # scores that are none
    ],
    ids=["untimed", "nothing", "right", "negative"],
)
def test_odd_answers_are_drawn_and_written_too(levels: dict[str, Level]) -> None:
    assert len(plots.draw(levels, "odd")) == 4
    json.dumps(curves_json(levels), allow_nan=False)


def test_curves_are_bounded_and_consistent() -> None:
    told = many()
    for name, curves in curves_json(told).items():
        twv = curves["twv"]
        assert {len(column) for column in twv.values()} == {len(twv["threshold"])}
        assert 50 < len(twv["threshold"]) <= CURVE_POINTS
        assert max(twv["twv"]) == pytest.approx(told[name].curve().maximum().twv, abs=1e-6)
        assert len(curves["precision_at"]) == 20
        assert [b["low"] for b in curves["reliability"]] == pytest.approx(np.arange(10) / 10)
        # The made-up scores are true.
        assert all(abs(b["score"] - b["right"]) < 0.1 for b in curves["reliability"])


def test_without_matplotlib_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(PlotsMissing, match=r"pip install 'sayagain\[evaluate\]'") as caught:
        Report(tmp_path)
    assert caught.value.code == "evaluate_extra_missing"
    write(tmp_path / "plain", with_plots=False)
    assert sorted(os.listdir(tmp_path / "plain")) == ["detections.tsv", "figures.json", "kwslist.xml"]


def test_a_folder_that_cannot_be_written_is_known_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match=r"cannot be written to .*: File exists"):
        Report(tmp_path / "file")
    with pytest.raises(ReportError, match="Not a directory"):
        Report(tmp_path / "file" / "below")
    with pytest.raises(ReportError, match="cannot be written"):
        Report(Path("/proc/self/report"))


def test_a_part_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, with_plots=False)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: object) -> list[str]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("service.evaluation.detections.kwslist", lambda *_: map(full, "x"))
    with pytest.raises(ReportError, match="No space left on device"):
        write(tmp_path, with_plots=False)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
