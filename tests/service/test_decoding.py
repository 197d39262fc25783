"""Decoder processes: what they read, and what becomes of those that are made to hang, swell or die."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from model import audio
from model.audio import AudioMissing
from service import decoding
from service.app import create_app
from service.clips import Clip, read_clip
from service.decoder import FILES, packed
from service.decoding import Decoders, DecodersFailed
from service.errors import DecoderFailed, QueryTooLong, TooBusy
from service.settings import Settings
from tests.service import hostile
from tests.service.conftest import DEMO
from tests.service.sounds import encode

QUERY = (DEMO / "query.opus").read_bytes()
SHORT_S = 0.5  # long for a good clip
RATE = 16_000
NOISE = (0.1 * np.random.default_rng(0).standard_normal(70 * RATE)).astype(np.float32)
KINDS = {"wav": "pcm_s16le", "flac": "flac", "mp3": "libmp3lame", "ogg": "libopus"}

linux = pytest.mark.skipif(sys.platform != "linux", reason="what is told of processes there")


@pytest.fixture(scope="module")
def endless() -> bytes:
    """20 hours: some 10 s to decode."""
    return hostile.endless_flac(20.0)


@pytest.fixture(scope="module")
def hour() -> bytes:
    """230 MB when it is decoded."""
    return encode(np.zeros(3_600 * 1_000), 1_000)


@pytest.fixture(scope="module")
def shared() -> Iterator[Decoders]:
    with closing(Decoders()) as decoders:
        yield decoders


@pytest.fixture
def decoders() -> Iterator[Decoders]:
    """Two, both started, of which each clip gets little time."""
    with closing(Decoders(2, timeout_s=SHORT_S)) as decoders:
        started(decoders)
        yield decoders


def started(decoders: Decoders) -> list[int]:
    """Ask until every process is there and ready; their ids."""
    deadline = time.monotonic() + 60
    while len(decoders.pids) < decoders.count or not all(one.is_ready for one in decoders._started):
        assert time.monotonic() < deadline
        with ThreadPoolExecutor(decoders.count) as threads:
            list(threads.map(lambda _: decoders.read_clip(hostile.wav(bytes(32 * RATE)), 60.0), range(decoders.count)))
    return decoders.pids


def outcome(read: Callable[[], Clip]) -> tuple[object, ...]:
    """A clip, or the error, as something that can be compared."""
    try:
        clip = read()
    except Exception as error:
        return type(error), str(error), getattr(error, "field", None)
    parts = tuple(part.tobytes() for part in (clip.before, clip.samples, clip.after))
    return *parts, clip.start_s, clip.duration_s


def far_into(decoders: Decoders, clip: bytes) -> Clip:
    """A stretch that is reached after all that is before it."""
    return decoders.read_clip(clip, 60.0, 71_000.0, 71_001.0)


def is_well(decoders: Decoders) -> bool:
    """Whether a good clip is answered as it should be."""
    return outcome(lambda: decoders.read_clip(QUERY, 60.0)) == outcome(lambda: read_clip(QUERY, 60.0))


@pytest.mark.parametrize(
    ("clip", "start_s", "end_s"),
    [
        (QUERY, None, None),
        (encode(NOISE), 10.1, 12.3),
        (encode(NOISE), None, None),
        (encode(NOISE), 80.0, None),
        (encode(NOISE), 3.0, 2.0),
        (b"", None, None),
        (b"this is text", None, None),
        (encode(np.zeros((1, 0), np.float32)), None, None),
        (hostile.wav(NOISE[:RATE].tobytes(), claimed=0xFFFFFFFF), None, None),
        (hostile.swelling_flac(), None, None),
    ],
    ids=["all", "stretch", "long", "after", "turned", "empty", "text", "no samples", "claims 4 GB", "swelling"],
)
def test_a_clip_is_read_as_in_the_process_itself(
    shared: Decoders, clip: bytes, start_s: float | None, end_s: float | None
) -> None:
    expected = outcome(lambda: read_clip(clip, 60.0, start_s, end_s))
    assert outcome(lambda: shared.read_clip(clip, 60.0, start_s, end_s)) == expected


def test_a_stretch_of_a_file_is_read_as_in_the_process_itself(shared: Decoders, tmp_path: Path) -> None:
    path = DEMO / "archive" / "skerry-radio" / "01-monday.opus"
    for start_s, end_s in ((0.0, 1.0), (12.0, 14.5), (1e6, 1e6 + 1)):
        np.testing.assert_array_equal(
            shared.read_between(path, start_s, end_s), audio.read_between(path, start_s, end_s)
        )
    with pytest.raises(AudioMissing, match="No such file"):
        shared.read_between(tmp_path / "none.opus", 0.0, 1.0)


@given(data=st.data())
@hypothesis_settings(max_examples=80, deadline=None)
def test_broken_files_are_read_or_refused_as_in_the_process_itself(shared: Decoders, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["random", *KINDS]))
    if kind == "random":
        magic = data.draw(st.sampled_from([b"", b"RIFF", b"OggS", b"fLaC", b"ID3\x03", b"\x1aE\xdf\xa3", b"FORM"]))
        clip = magic + data.draw(st.binary(max_size=2_000))
    else:
        clip = bytearray(encode(NOISE[: RATE // 2], RATE, kind, KINDS[kind]))
        for _ in range(data.draw(st.integers(0, 8))):
            clip[data.draw(st.integers(0, len(clip) - 1))] = data.draw(st.integers(0, 255))
        clip = bytes(clip[: data.draw(st.integers(0, len(clip)))])
    assert outcome(lambda: shared.read_clip(clip, 60.0)) == outcome(lambda: read_clip(clip, 60.0))


def test_a_clip_that_takes_for_ever_is_given_up_and_the_next_is_answered(decoders: Decoders, endless: bytes) -> None:
    began = time.monotonic()
    with pytest.raises(DecoderFailed, match=r"longer than 0\.5 s"):
        far_into(decoders, endless)
    assert SHORT_S <= time.monotonic() - began < 5
    assert is_well(decoders)
    assert is_well(decoders)


def test_a_clip_that_takes_too_much_memory_is_given_up_and_the_next_is_answered(hour: bytes) -> None:
    with closing(Decoders(1, memory_mb=64.0)) as decoders:
        with pytest.raises(DecoderFailed, match="too much memory"):
            decoders.read_clip(hour, 4_000.0)
        assert is_well(decoders)
        with pytest.raises(QueryTooLong):
            decoders.read_clip(hour, 60.0)


def test_a_decoder_that_is_killed_in_the_middle_takes_one_clip_with_it(endless: bytes) -> None:
    with closing(Decoders(2)) as decoders, ThreadPoolExecutor(2) as threads:
        started(decoders)
        hit = threads.submit(far_into, decoders, endless)
        (busy,) = [pid for pid in decoders.pids if is_busy(pid)]
        beside = threads.submit(lambda: [is_well(decoders) for _ in range(30)])
        os.kill(busy, signal.SIGKILL)
        with pytest.raises(DecoderFailed):
            hit.result(5)
        assert all(beside.result(60))
        assert busy not in decoders.pids
        assert len(started(decoders)) == 2


def is_busy(pid: int) -> bool:
    """Whether a process works all the time."""
    process = psutil.Process(pid)
    return process.cpu_percent(0.5) > 15


@pytest.mark.parametrize("megabytes", [0, 8], ids=["small", "more than the socket holds"])
def test_a_decoder_that_hangs_is_replaced(decoders: Decoders, megabytes: int) -> None:
    stopped = decoders.pids
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    clip = encode(NOISE[:RATE]) + bytes(megabytes * 1_000_000)
    for _ in stopped:
        began = time.monotonic()
        with pytest.raises(DecoderFailed, match="longer"):
            decoders.read_clip(clip, 60.0)
        assert time.monotonic() - began < 5
    assert is_well(decoders)
    assert not set(stopped) & set(decoders.pids)
    assert not any(psutil.pid_exists(pid) for pid in stopped)


def test_a_decoder_that_hangs_while_it_answers_is_replaced(decoders: Decoders, hour: bytes) -> None:
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(decoders.read_clip, hour, 4_000.0)
        while not answer.done():  # wherever it is caught
            for pid in decoders.pids:
                with_no_fuss(pid, signal.SIGSTOP)
        with pytest.raises(DecoderFailed):
            answer.result()
    for pid in decoders.pids:
        with_no_fuss(pid, signal.SIGCONT)
    assert is_well(decoders)


def with_no_fuss(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def is_alive(pid: int) -> bool:
    """Whether a process is at work still, waited for or not."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_decoder_that_died_while_it_had_nothing_to_do_is_not_missed(decoders: Decoders) -> None:
    for pid in decoders.pids:
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # a zombie may have threads that are still there
    assert all(is_well(decoders) for _ in range(4))


def test_many_threads_share_few_decoders(hour: bytes) -> None:
    good, bad = outcome(lambda: read_clip(QUERY, 60.0)), outcome(lambda: read_clip(b"text", 60.0))

    def ask(number: int) -> bool:
        if number % 29 == 7:
            with pytest.raises(DecoderFailed):
                decoders.read_clip(hour, 4_000.0)
            return True
        clip, expected = (b"text", bad) if number % 3 == 0 else (QUERY, good)
        return outcome(lambda: decoders.read_clip(clip, 60.0)) == expected

    with closing(Decoders(2, memory_mb=64.0)) as decoders, ThreadPoolExecutor(12) as threads:
        assert all(threads.map(ask, range(120)))
        assert len(decoders.pids) <= 2


def test_whoever_waits_too_long_for_a_decoder_is_told_to_come_again(endless: bytes) -> None:
    with closing(Decoders(1, timeout_s=SHORT_S)) as decoders, ThreadPoolExecutor(6) as threads:
        started(decoders)
        errors = [type(one.exception()) for one in [threads.submit(far_into, decoders, endless) for _ in range(6)]]
        assert set(errors) == {DecoderFailed, TooBusy}
        assert errors.count(TooBusy) >= 3
        assert is_well(decoders)


def test_first_come_first_served(endless: bytes) -> None:
    served: list[str] = []
    with closing(Decoders(1, timeout_s=5.0)) as decoders:
        started(decoders)

        def greedy() -> None:
            for _ in range(20):
                decoders.read_clip(encode(NOISE[: 30 * RATE]), 60.0)
                served.append("greedy")

        def modest() -> None:
            decoders.read_clip(QUERY, 60.0)
            served.append("modest")

        with ThreadPoolExecutor(2) as threads:
            first = threads.submit(greedy)
            while not served:
                time.sleep(1e-3)
            threads.submit(modest).result()
            first.result()
    assert served.index("modest") <= 5


def test_a_decoder_serves_so_many_clips_and_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "TASKS", 3)
    with closing(Decoders(1)) as decoders:
        pids = []
        for _ in range(7):
            assert is_well(decoders)
            pids += decoders.pids
        assert [pids.index(pid) for pid in pids] == [0, 0, 0, 3, 3, 3, 6]


@linux
def test_a_decoder_has_none_of_the_services_secrets_and_little_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAYAGAIN_DATABASE_URL", "postgresql://somebody:hushhush@nowhere/none")
    with closing(Decoders(1)) as decoders:
        (pid,) = started(decoders)
        about = Path(f"/proc/{pid}")
        assert b"hushhush" not in about.joinpath("environ").read_bytes()
        limits = about.joinpath("limits").read_text()
        assert psutil.Process(pid).rlimit(psutil.RLIMIT_CORE) == (0, 0)
        assert psutil.Process(pid).rlimit(psutil.RLIMIT_FSIZE) == (0, 0)
        assert psutil.Process(pid).rlimit(psutil.RLIMIT_NOFILE) == (FILES, FILES)
        size, most = psutil.Process(pid).memory_info().vms, psutil.Process(pid).rlimit(psutil.RLIMIT_AS)[1]
        assert 0.9e9 < most - size < 1.1e9, limits


def test_nobody_decodes_after_the_end(endless: bytes) -> None:
    with ThreadPoolExecutor(1) as threads:
        decoders = Decoders(2)
        pids = started(decoders)
        pending = threads.submit(far_into, decoders, endless)
        time.sleep(0.2)
        decoders.close()
        assert isinstance(pending.exception(5), DecoderFailed)
    assert not any(psutil.pid_exists(pid) for pid in pids)
    with pytest.raises(DecodersFailed):
        decoders.read_clip(QUERY, 60.0)


PARENT = """
import sys, threading
from tests.service import hostile
from service.decoding import Decoders
decoders = Decoders(2)
decoders.read_clip(hostile.wav(bytes(32_000)), 60.0)
threading.Thread(target=decoders.read_clip, args=(hostile.endless_flac(20.0), 60.0, 71_000.0, 71_001.0)).start()
print(*decoders.pids, flush=True)
"""


def test_decoders_end_with_a_service_that_was_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, cwd=DEMO.parents[1])
    with parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        time.sleep(0.5)
        assert pids
        assert all(psutil.pid_exists(pid) for pid in pids)
        parent.kill()
    deadline = time.monotonic() + 5
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


LIAR = """
import os, socket, sys
from service.decoder import READY, Channel
channel = Channel(socket.socket(fileno=int(sys.argv[1])))
channel.send(READY)
channel.receive(1 << 62)
channel.send(open({path!r}, "rb").read())
channel.receive(1 << 62)
"""
TEN = np.zeros(10, np.float32).tobytes()
NUMBERS = {"start_s": 0, "duration_s": 1}


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\xff" * 100,
        packed({}),
        packed([]),  # type: ignore[arg-type]
        packed({"error": "SystemExit", "message": "", "field": None}),
        packed({"lengths": [3, 3, 3], "numbers": NUMBERS}, TEN),
        packed({"lengths": [10], "numbers": NUMBERS}, TEN),
        packed({"lengths": [4, 3, 3], "numbers": {}}, TEN),
        packed({"lengths": [4, 3, 3], "numbers": NUMBERS}, TEN[:-1]),
        packed({"lengths": [-4, 10, 4], "numbers": NUMBERS}, TEN),
        packed({"lengths": "abc", "numbers": 1}, TEN),
        packed({"lengths": [100_000, 100_000, 100_000], "numbers": NUMBERS}, bytes(1_200_000)),
    ],
)
def test_what_a_decoder_says_is_not_believed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: bytes) -> None:
    with monkeypatch.context() as patch:
        start = "import sys, json; sys.path[:] = json.loads(sys.argv[3])\n"
        (tmp_path / "said").write_bytes(said)
        patch.setattr(decoding, "_START", start + LIAR.format(path=str(tmp_path / "said")))
        with closing(Decoders(1, memory_mb=1.0)) as decoders, pytest.raises(DecoderFailed):
            decoders.read_clip(QUERY, 60.0)


@pytest.mark.parametrize(("start", "why"), [("raise SystemExit(9)", "exit status 9"), ("#" * 3_000_000, "too long")])
def test_decoders_that_do_not_start_are_a_fault_of_ours(monkeypatch: pytest.MonkeyPatch, start: str, why: str) -> None:
    monkeypatch.setattr(decoding, "_START", start)
    with closing(Decoders(1)) as decoders:
        for _ in range(2):
            with pytest.raises(DecodersFailed, match=why):
                decoders.read_clip(QUERY, 60.0)


@pytest.fixture(scope="module")
def hurried(settings: Settings) -> Iterator[TestClient]:
    """The demo's service, which gives a clip little time, and any length."""
    limits = {"decoder_timeout_s": SHORT_S, "max_query_s": 1e6}
    with TestClient(create_app(settings.model_copy(update=limits)), raise_server_exceptions=False) as client:
        started(client.app.state.backend.decoders)  # type: ignore[attr-defined]
        yield client


def test_over_http_such_a_clip_is_refused_and_the_next_is_answered(hurried: TestClient, endless: bytes) -> None:
    answer = hurried.post("/v1/search", files={"file": endless}, data={"archive": "demo"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "decoder_failed")
    good = hurried.post("/v1/search", files={"file": QUERY}, data={"archive": "demo", "limit": 3})
    assert (good.status_code, len(good.json()["hits"])) == (200, 3)


def test_a_batch_of_such_clips_does_not_cost_more_than_a_few(hurried: TestClient, endless: bytes) -> None:
    def send(*clips: bytes) -> list[str]:
        answers = hurried.post("/v1/search/batch", files=[("file", clip) for clip in clips], data={"archive": "demo"})
        return [one["error"]["code"] if one["error"] else "found" for one in answers.json()["answers"]]

    mixed = [QUERY, endless, b"text", QUERY]
    assert send(*mixed) == ["found", "decoder_failed", "audio_undecodable", "found"]
    began = time.monotonic()
    assert send(*[endless] * 20) == ["decoder_failed"] * 20
    assert time.monotonic() - began < 20 * SHORT_S / 2  # 20 clips, 2 decoders
    assert send(QUERY) == ["found"]


def test_the_sound_of_a_recording_is_read_by_a_decoder_too(hurried: TestClient) -> None:
    decoders = hurried.app.state.backend.decoders  # type: ignore[attr-defined]
    (recording,) = hurried.get("/v1/recordings", params={"archive": "demo", "limit": 1}).json()["recordings"]
    url = f"/v1/recordings/{recording['id']}/peaks"
    for pid in started(decoders):
        os.kill(pid, signal.SIGSTOP)
    answer = hurried.get(url)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "decoder_failed")
    assert hurried.get(url).status_code == 400
    assert hurried.get(url).status_code == 200
