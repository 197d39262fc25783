import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from service.cli import AT_ONCE
from service.schemas import SearchOut
from tests.service.conftest import DEMO, Run, run_cli
from tests.service.sounds import write


def test_search_prints_one_object_per_clip_and_line(cli: Run, query_path: Path) -> None:
    done = cli("search", query_path, DEMO / "queries" / "umbrella.opus", "--archive", "demo", "--limit", "3", "--json")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["file"] for line in lines] == [str(query_path), str(DEMO / "queries" / "umbrella.opus")]
    for line in lines:
        line.pop("file")
        assert len(SearchOut.model_validate(line).hits) == 3


def test_a_stretch_of_an_indexed_recording_is_searched_by_name(cli: Run) -> None:
    words = (
        "search",
        "--recording",
        "skerry-radio/01-monday.opus",
        "--start",
        "14.4",
        "--end",
        "15.2",
        "--archive",
        "demo",
    )
    done = cli(*words, "--limit", "4", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer.pop("recording") == "skerry-radio/01-monday.opus"
    hits = SearchOut.model_validate(answer).hits
    assert len(hits) == 4
    assert "skerry-radio/01-monday.opus: " in cli(*words).stdout
    assert cli("search", "--recording", "x", "--archive", "demo").returncode == 2
    assert cli("search", "--archive", "demo").returncode == 2
    gone = cli("search", "--recording", "gone.wav", "--start", "1", "--end", "2", "--archive", "demo")
    assert (gone.returncode, gone.stderr.count("recording_not_found")) == (1, 1)


def test_search_writes_exports(cli: Run, query_path: Path, tmp_path: Path) -> None:
    wanted = ("search", query_path, "--archive", "demo", "--limit", "5", "--export")
    done = cli(*wanted, "csv")
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [row["label"] for row in rows] == ["query"] * 5
    hits = json.loads(cli(*wanted[:-1], "--json").stdout)["hits"]
    assert [(row["recording"], float(row["start"])) for row in rows] == [
        (h["recording"]["name"], h["start"]) for h in hits
    ]
    assert cli(*wanted, "jsonl", "--out", tmp_path / "hits.jsonl").stdout == ""
    assert len((tmp_path / "hits.jsonl").read_text().splitlines()) == 5
    done = cli(*wanted, "textgrid", "--out", tmp_path / "praat")
    assert (done.returncode, done.stdout) == (0, "")
    written = {str(path.relative_to(tmp_path / "praat")) for path in (tmp_path / "praat").rglob("*.TextGrid")}
    assert written == {f"{hit['recording']['name']}.TextGrid" for hit in hits}
    name, start, end = hits[0]["recording"]["name"], hits[0]["start"], hits[0]["end"]
    stretch = ("search", "--recording", name, "--start", str(start), "--end", str(end), "--archive", "demo")
    done = cli(*stretch, "--limit", "3", "--export", "audacity", "--out", tmp_path / "labels")
    assert done.returncode == 0
    assert len(list((tmp_path / "labels").rglob("*.txt"))) == done.stderr.count("wrote ")


def test_exports_that_cannot_be_written(cli: Run, query_path: Path, tmp_path: Path) -> None:
    wanted = ("search", query_path, "--archive", "demo", "--export")
    assert cli(*wanted, "eaf").returncode == 2
    assert cli(*wanted[:-1], "--out", tmp_path).returncode == 2
    assert cli(*wanted, "csv", "--json").returncode == 2
    (tmp_path / "file").write_text("")
    done = cli(*wanted, "eaf", "--out", tmp_path / "file")
    assert done.returncode == 1
    assert "export_unwritable" in done.stderr


def test_search_prints_a_table_for_people(cli: Run, query_path: Path) -> None:
    done = cli("search", query_path, "--archive", "demo", "--limit", "2")
    assert done.returncode == 0
    assert "recording" in done.stdout
    assert "skerry-radio/" in done.stdout or "field-notes/" in done.stdout
    assert "searched" in done.stdout


def test_a_device_that_is_not_there_is_said_and_done_without(tmp_path: Path, tokenizer_path: Path) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("there is one")
    file = DEMO / "archive" / "skerry-radio" / "01-monday.opus"
    words = ("index", file, "--device", "cuda", "--json")
    done = run_cli(tmp_path / "home", tokenizer_path, *words)
    assert (done.returncode, json.loads(done.stdout)["indexed"]) == (0, 1)
    assert "no CUDA device that ONNX Runtime can use" in done.stderr
    assert run_cli(tmp_path / "home", tokenizer_path, "index", file, "--device", "tpu").returncode == 2


def test_index_leaves_the_local_index_ready(tmp_path: Path, tokenizer_path: Path) -> None:
    made = run_cli(tmp_path, tokenizer_path, "index", DEMO / "archive" / "kurzwelle", "--archive", "own")
    assert made.returncode == 0
    (shard,) = (tmp_path / "index").rglob("*.shard")
    assert shard.stat().st_size > 10_000


def test_a_second_index_skips_everything(cli: Run) -> None:
    done = cli("index", DEMO / "archive", "--archive", "demo", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["indexed"], report["failed"]) == (0, 0, [])
    assert report["unchanged"] == report["files"] > 0


def test_archives_are_listed(cli: Run) -> None:
    listed = json.loads(cli("archives", "--json").stdout)
    assert [archive["name"] for archive in listed["archives"]] == ["demo"]
    assert "demo" in cli("archives").stdout


def test_one_bad_clip_does_not_stop_the_others(cli: Run, query_path: Path, tmp_path: Path) -> None:
    silence = write(tmp_path / 'it\'s "quiet"\nhere ü.wav', np.zeros(16_000, np.float32))
    done = cli("search", silence, query_path, tmp_path / "none.wav", "--archive", "demo", "--json")
    assert done.returncode == 3
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line.get("error", {}).get("code") for line in lines] == ["no_speech", None, "audio_unreadable"]
    assert lines[0]["file"] == str(silence)
    assert cli("search", silence, "--archive", "demo").returncode == 1


def test_more_clips_than_share_their_work_are_answered_in_order(cli: Run, query_path: Path, tmp_path: Path) -> None:
    clips = [query_path] * AT_ONCE + [tmp_path / "none.wav", query_path]
    done = cli("search", *clips, "--archive", "demo", "--limit", "3", "--json")
    assert done.returncode == 3
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["file"] for line in lines] == [str(clip) for clip in clips]
    assert lines[AT_ONCE]["error"]["code"] == "audio_unreadable"
    answered = [line["hits"] for line in lines if "hits" in line]
    assert len(answered) == AT_ONCE + 1
    assert all(hits == answered[0] for hits in answered)


def test_deep_rescoring_without_its_tokenizer_says_what_to_do(cli: Run, query_path: Path) -> None:
    done = cli("search", query_path, "--archive", "demo", "--rescore", "deep")
    assert (done.returncode, done.stdout) == (1, "")
    assert "deep_unavailable" in done.stderr
    assert "sayagain tokenizer build accurate" in done.stderr


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (("search", "QUERY", "--archive", "nowhere"), 1, "archive_not_found"),
        (("index", "EMPTY", "--archive", "new"), 1, "no_audio_found"),
        (("index", "EMPTY/none", "--archive", "new"), 1, ""),
        (("delete", "nowhere"), 1, "archive_not_found"),
        (("search",), 2, ""),
        (("index", "EMPTY", "--codebook", "mine"), 2, "--codebook"),
        (("frobnicate",), 2, ""),
        (("export", "EMPTY", "--out", "EMPTY/x.onnx"), 1, "training_failed"),
    ],
)
def test_errors_are_one_line_with_their_exit_code(
    cli: Run, query_path: Path, tmp_path: Path, words: tuple[str, ...], status: int, says: str
) -> None:
    names = {
        "QUERY": str(query_path),
        "EMPTY": str(tmp_path),
        "EMPTY/none": str(tmp_path / "none"),
        "EMPTY/x.onnx": str(tmp_path / "x.onnx"),
    }
    done = cli(*(names.get(word, word) for word in words))
    assert done.returncode == status, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    if status == 1:
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_a_database_that_is_down_is_one_line(cli: Run, query_path: Path) -> None:
    done = cli("search", query_path, SAYAGAIN_DATABASE_URL="postgresql://nobody:secret@127.0.0.1:1/none")
    assert done.returncode == 1
    assert done.stderr.startswith("sayagain: database_unavailable: ")
    assert "secret" not in done.stderr


def test_a_tokenizer_that_is_none_is_one_line(cli: Run, query_path: Path, tmp_path: Path) -> None:
    (tmp_path / "t.onnx").write_text("no")
    done = cli("search", query_path, SAYAGAIN_TOKENIZER=str(tmp_path / "t.onnx"))
    assert done.returncode == 1
    assert done.stderr.startswith("sayagain: tokenizer_invalid: ")


def test_broken_files_are_listed_and_the_rest_is_indexed(
    tokenizer_path: Path, tmp_path: Path, query: np.ndarray
) -> None:
    folder = tmp_path / "sound"
    folder.mkdir()
    write(folder / "good one.wav", query)
    (folder / "text.wav").write_text("hello")
    (folder / "empty.mp3").write_bytes(b"")
    home = tmp_path / "home"
    done = run_cli(home, tokenizer_path, "index", folder, "--json")
    assert done.returncode == 3, done.stderr
    report = json.loads(done.stdout)
    assert report["indexed"] == 1
    assert {f["name"]: f["code"] for f in report["failed"]} == {
        "text.wav": "audio_undecodable",
        "empty.mp3": "audio_empty",
    }
    assert "text.wav: audio_undecodable" in done.stderr
    found = json.loads(run_cli(home, tokenizer_path, "search", folder / "good one.wav", "--json").stdout)
    assert found["hits"][0]["recording"]["name"] == "good one.wav"
    deleted = run_cli(home, tokenizer_path, "delete", "default", "--recording", "good one.wav")
    assert deleted.returncode == 0, deleted.stderr
    gone = run_cli(home, tokenizer_path, "search", folder / "good one.wav")
    assert (gone.returncode, "archive_not_ready" in gone.stderr) == (1, True)


def test_evaluate_scores_a_task(cli: Run, tmp_path: Path) -> None:
    import csv

    with (DEMO / "truth.tsv").open(encoding="utf-8") as file:
        places = [
            (r["recording"], float(r["start"]), float(r["end"]), r["term"])
            for r in csv.DictReader(file, delimiter="\t")
        ]
    queries = [
        {
            "clip": str(DEMO / "query.opus"), "source": ["none", None, None],
            "relevant": [p[:3] for p in places if p[3] == "visibility"],
        },
    ]  # fmt: skip
    (tmp_path / "task.json").write_text(json.dumps({"queries": queries}))
    done = cli("evaluate", tmp_path / "task.json", "--archive", "demo", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result["figures"]) == {"file/all", "file/iv", "located/all", "located/iv"}
    assert result["figures"]["located/all"]["mrr"] == 1.0
    assert result["failed"] == 0
    assert set(result["curves"]) == {"file", "located"}
    table = cli("evaluate", tmp_path / "task.json", "--archive", "demo", COLUMNS="80").stdout
    assert "MAP" in table
    assert "ATWV" in table
    assert "…" not in table


def demo_words(folder: Path, terms: dict[str, str]) -> Path:
    """Where the terms of the demo are said, as CTM; the list of its clips beside it."""
    import csv

    with (DEMO / "truth.tsv").open(encoding="utf-8") as file:
        said = [row for row in csv.DictReader(file, delimiter="\t") if row["term"] in terms]
    (folder / "truth.ctm").write_text(
        "".join(
            f"{row['recording'].removesuffix('.opus')} 1 {row['start']} {float(row['end']) - float(row['start']):.3f} "
            f"{row['term'].upper()} NA\n"
            for row in said
        )
    )
    rows = [
        f"{DEMO / clip}\t{term}\t{said[0]['recording']}\t{'yes' if term == 'umbrella' else ''}\n"
        for term, clip in terms.items()
    ]
    (folder / "queries.tsv").write_text("".join(rows))
    return folder / "queries.tsv"


def test_evaluate_reads_a_query_list_and_writes_a_report(cli: Run, tmp_path: Path) -> None:
    listed = demo_words(tmp_path, {"visibility": "query.opus", "umbrella": "queries/umbrella.opus"})
    words = ("evaluate", "--queries", listed, "--references", tmp_path / "truth.ctm", "--archive", "demo")
    done = cli(*words, "--report", tmp_path / "report", "--threshold", "0.3", "--beta", "20", "--json")
    assert done.returncode == 0, done.stderr
    assert "recordings have no words in" in done.stderr
    result = json.loads(done.stdout)
    assert set(result["figures"]) == {
        f"{kind}/{group}" for kind in ("file", "located") for group in ("all", "iv", "oov")
    }
    found = result["figures"]["located/all"]
    assert (found["queries"], found["mrr"], found["beta"], found["atwv_threshold"]) == (2, 1.0, 20, 0.3)
    assert found["atwv"] <= found["mtwv"]
    assert json.loads((tmp_path / "report" / "figures.json").read_text()) == result
    assert {path.name for path in (tmp_path / "report").iterdir()} >= {"twv.png", "kwslist.xml", "detections.tsv"}
    rows = (tmp_path / "report" / "detections.tsv").read_text().splitlines()
    assert rows[1].split("\t")[-2:] == ["YES", "yes"]


def test_evaluate_names_clips_that_fail_and_goes_on(cli: Run, tmp_path: Path) -> None:
    listed = demo_words(tmp_path, {"visibility": "query.opus", "umbrella": "queries/none.opus"})
    words = ("evaluate", "--queries", listed, "--references", tmp_path / "truth.ctm", "--archive", "demo", "--json")
    done = cli(*words)
    assert (done.returncode, json.loads(done.stdout)["failed"]) == (3, 1)
    assert "none.opus: audio_unreadable" in done.stderr
    listed.write_text("gone.wav\tvisibility\n")
    done = cli(*words)
    assert (done.returncode, json.loads(done.stdout)["failed"]) == (1, 1)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        ((), 2, "--queries"),
        (("TASK", "--queries", "LIST", "--references", "CTM"), 2, "not both"),
        (("--queries", "LIST"), 2, "go together"),
        (("TASK", "--references", "CTM"), 2, "go together"),
        (("TASK", "--in-context"), 2, "--folder"),
        (("TASK", "--threshold", "2"), 2, "--threshold"),
        (("TASK", "--threshold", "nan"), 2, "--threshold"),
        (("TASK", "--beta", "inf"), 2, "a number is needed"),
        (("TASK",), 1, "task_invalid"),
        (("--queries", "LIST", "--references", "LIST"), 1, "references_invalid"),
        (("--queries", "CTM", "--references", "CTM"), 1, "queries_invalid"),
        (("TASK", "--report", "LIST"), 1, "report_unwritable"),
    ],
)
def test_evaluate_says_what_it_cannot_use(
    cli: Run, tmp_path: Path, words: tuple[str, ...], status: int, says: str
) -> None:
    listed = demo_words(tmp_path, {"visibility": "query.opus"})
    names = {"LIST": str(listed), "CTM": str(tmp_path / "truth.ctm"), "TASK": str(tmp_path / "none.json")}
    done = cli("evaluate", *(names.get(word, word) for word in words), "--archive", "demo")
    assert done.returncode == status, done.stderr
    assert says in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    if status == 1:
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_serve_answers_and_stops_when_told(demo_home: Path, tokenizer_path: Path) -> None:
    port = free_port()
    environment = {**os.environ, "SAYAGAIN_HOME": str(demo_home), "SAYAGAIN_TOKENIZER": str(tokenizer_path)}
    server = subprocess.Popen(
        [sys.executable, "-m", "service", "serve", "--port", str(port)], env=environment, stderr=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
                    assert json.load(answer)["ready"]
                break
            except OSError:
                assert time.monotonic() < deadline
                assert server.poll() is None
                time.sleep(0.2)
        server.send_signal(signal.SIGTERM)
        assert server.wait(15) in (0, -signal.SIGTERM)
    finally:
        server.kill()
        server.wait()
        assert server.stderr is not None
        server.stderr.close()


@pytest.mark.parametrize(
    "verb",
    ["index", "search", "serve", "archives", "delete", "train", "adapt", "export", "evaluate", "migrate", "tokenizer"],
)
def test_every_verb_has_help(cli: Run, verb: str) -> None:
    assert cli(verb, "--help").returncode == 0
