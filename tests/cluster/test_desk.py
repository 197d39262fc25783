"""What a Dask worker has at hand: it says what it lacks, what it cannot do, and outlives every file."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from indexer.desk import Desk, Lacking, Unable, Wanted, release
from indexer.discover import Failure, FoundFile, discover
from indexer.messages import Hear, Heard, Index, Indexed, Measure, Measured, Setup
from model.codebook import Codebook
from tests.cluster.conftest import TAPES


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path / "tokenizers")
    yield desk
    desk.leave()


@pytest.fixture
def wanted(tokenizer_path: Path) -> Wanted:
    sha256 = hashlib.sha256(tokenizer_path.read_bytes()).hexdigest()
    return Wanted(release(), Setup(Path(), "cpu"), sha256)


def test_it_says_what_it_lacks_and_takes_it(desk: Desk, wanted: Wanted, tokenizer_path: Path) -> None:
    file = discover([TAPES]).files[0]
    unknown = replace(wanted, tokenizer_sha256=hashlib.sha256(b"no tokenizer").hexdigest())
    assert desk.do(unknown, Hear(file, 1, 5.0)) == Lacking("tokenizer")
    desk.take("tokenizer", unknown.tokenizer_sha256, b"no tokenizer")
    assert desk.has("tokenizer", unknown.tokenizer_sha256)
    assert isinstance(desk.do(unknown, Hear(file, 1, 5.0)), Unable)  # it is no tokenizer, and the desk is well
    desk.take("tokenizer", wanted.tokenizer_sha256, tokenizer_path.read_bytes())
    heard = desk.do(wanted, Hear(file, 1, 60.0))
    assert isinstance(heard, Heard)
    embeddings = np.concatenate([part.embeddings for part in heard.parts])
    codebook = Codebook(np.ascontiguousarray(embeddings[:32]))
    tokens = replace(wanted, codebook_sha256=codebook.sha256)
    assert desk.do(tokens, Index(file)) == Lacking("codebook")
    desk.take("codebook", codebook.sha256, pickle.dumps(codebook))
    indexed = desk.do(tokens, Index(file))
    assert isinstance(indexed, Indexed)
    assert len(indexed.used) == 32


def test_a_file_that_was_damaged_on_its_way_is_not_taken_for_it(desk: Desk, wanted: Wanted) -> None:
    sha256 = hashlib.sha256(b"whole").hexdigest()
    desk.take("tokenizer", sha256, b"torn")
    assert not desk.has("tokenizer", sha256)


def test_it_says_what_it_cannot_do(desk: Desk, wanted: Wanted, tmp_path: Path) -> None:
    missing = FoundFile("a.wav", tmp_path / "a.wav", 1, 1)
    unable = desk.do(wanted, Index(missing))
    assert isinstance(unable, Unable) or unable == Lacking("tokenizer")
    unable = desk.do(wanted, Measure([missing]))
    if not isinstance(unable, Lacking):
        assert isinstance(unable, Unable)
        assert "does not see" in unable.why
        assert desk.do(replace(wanted, look=False), Measure([missing])) == Measured([None])
    unable = desk.do(replace(wanted, release="another"), Index(missing))
    assert isinstance(unable, Unable)
    assert "another" in unable.why


def test_a_file_that_is_none_is_a_failure_of_that_file(
    desk: Desk, wanted: Wanted, tokenizer_path: Path, tmp_path: Path
) -> None:
    desk.take("tokenizer", wanted.tokenizer_sha256, tokenizer_path.read_bytes())
    noise = tmp_path / "noise.wav"
    noise.write_bytes(b"RIFF no sound at all")
    (file,) = discover([noise]).files
    failed = desk.do(wanted, Hear(file, 1, 5.0))
    assert isinstance(failed, Failure)
    assert failed.code == "audio_undecodable"
