"""The tokenizers at hand: named, kept as copies that are never half there, and found by hash."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
from sqlalchemy import Engine

from indexer import store
from indexer.pipeline import index_archive
from model import audio
from model.tokenizer import Tokenizer, TokenizerError
from service import registry
from service.clips import Clip
from service.registry import Registry, files, keep, resolve
from service.search.answer import Request
from service.search.engine import SearchEngine
from tests.conftest import ToneFile
from tests.model.test_contract import tiny


def tokenizer(path: Path, name: str) -> Path:
    """A small tokenizer of that name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tiny(metadata={"name": name}).SerializeToString())
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def default(tmp_path: Path) -> Path:
    return tokenizer(tmp_path / "default.onnx", "default")


@pytest.fixture
def given(tmp_path: Path) -> Path:
    return tokenizer(tmp_path / "given.onnx", "my own/one")


def test_a_tokenizer_is_named_or_a_path(home: Path, default: Path, given: Path) -> None:
    kept = keep(home, given, default)
    assert resolve(home, "fast", default) == default
    assert resolve(home, kept.stem, default) == kept
    assert resolve(home, str(given), default) == given


def test_what_cannot_be_resolved_is_answered_with_what_there_is(home: Path, default: Path, given: Path) -> None:
    with pytest.raises(TokenizerError, match=r"^no tokenizer 'other': neither a file nor one of fast$"):
        resolve(home, "other", default)
    names = [keep(home, path, default).stem for path in (given, tokenizer(given.parent / "b.onnx", "another"))]
    with pytest.raises(TokenizerError) as raised:
        resolve(home, "other", default)
    assert str(raised.value).endswith(f"one of fast, {', '.join(sorted(names))}")
    with pytest.raises(TokenizerError, match="no tokenizer"):
        resolve(home, str(home), default)  # a folder is none
    assert TokenizerError.code == "tokenizer_invalid"


def test_keeping_copies_once(home: Path, default: Path, given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = keep(home, given, default)
    assert kept == home / "tokenizers" / f"my-own-one-{sha256(given)[:12]}.onnx"
    assert kept.read_bytes() == given.read_bytes()
    monkeypatch.setattr(shutil, "copyfile", lambda *_: pytest.fail("copied again"))
    assert keep(home, given, default) == kept
    assert keep(home, kept, default) == kept
    assert keep(home, default, default) == default
    assert files(kept.parent) == [kept]


def test_another_file_of_the_same_name_is_kept_beside_it(home: Path, default: Path, given: Path) -> None:
    first = keep(home, given, default)
    model = tiny(metadata={"name": "my own/one", "version": "2"})
    given.write_bytes(model.SerializeToString())
    second = keep(home, given, default)
    assert files(home / "tokenizers") == sorted([first, second])
    assert (Tokenizer(first).info.version, Tokenizer(second).info.version) == ("1", "2")


def test_a_copy_that_breaks_off_leaves_nothing(
    home: Path, default: Path, given: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copyfile = shutil.copyfile

    def breaks_off(source: Path, to: Path) -> None:
        to.write_bytes(source.read_bytes()[:1_000])
        assert files(to.parent) == []  # nobody takes half a file for a tokenizer
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(registry.shutil, "copyfile", breaks_off)
        with pytest.raises(OSError, match="No space left"):
            keep(home, given, default)
    assert list((home / "tokenizers").iterdir()) == []
    assert registry.shutil.copyfile is copyfile
    assert keep(home, given, default).read_bytes() == given.read_bytes()


def test_what_is_no_tokenizer_is_not_kept(home: Path, default: Path, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(TokenizerError, match="is not an ONNX file"):
        keep(home, tmp_path / "text.onnx", default)
    assert not (home / "tokenizers").exists()


def test_they_are_found_by_hash_and_opened_once(home: Path, default: Path, given: Path) -> None:
    known = Registry(home, default, threads=1)
    assert known.default.path == default
    assert known.find(sha256(default)) is known.default
    assert known.find(sha256(given)) is None
    kept = keep(home, given, default)  # while it is running
    (kept.parent / "broken.onnx").write_text("no")
    found = known.find(sha256(given))
    assert found is not None
    assert (found.path, found.info.name) == (kept, "my own/one")
    assert known.find(sha256(given)) is found
    kept.unlink()
    assert known.find(sha256(given)) is found  # it is in memory
    assert Registry(home, default, threads=1).find(sha256(given)) is None


def test_a_file_that_is_replaced_is_not_found_by_its_old_hash(home: Path, default: Path, given: Path) -> None:
    known = Registry(home, default, threads=1)
    kept = keep(home, given, default)
    old = sha256(kept)
    assert known.find("0" * 64) is None  # all have been looked at
    kept.write_bytes(tiny(metadata={"name": "a longer name"}).SerializeToString())
    assert known.find(old) is None
    found = known.find(sha256(kept))
    assert found is not None
    assert found.info.name == "a longer name"


def test_an_archive_whose_tokenizer_is_gone_says_so(
    engine: Engine, home: Path, default: Path, given: Path, tone_file: ToneFile
) -> None:
    sound = tone_file("a.wav", seconds=6)
    kept = keep(home, given, default)
    index_archive(engine, [sound], "own", kept, workers=1, codes=False)
    samples = audio.read(sound)[16_000:40_000]
    request = Request([Clip(samples[:0], samples, samples[:0], 0.0, 1.5)], "own")

    def search() -> str:
        known = Registry(home, default, threads=1)
        answer = SearchEngine(engine, known.default, others=known.find).search(request)
        assert answer.hits[0].recording.name == "a.wav"
        return answer.tokenizer

    assert search() == "my own/one"
    kept.unlink()
    with pytest.raises(store.TokenizerMismatch, match="made with the tokenizer my own/one") as raised:
        search()
    assert raised.value.code == "tokenizer_mismatch"
    keep(home, given, default)
    assert search() == "my own/one"
