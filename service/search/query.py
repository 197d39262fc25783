"""What is asked: a clip that is heard, or a stretch of an indexed recording that is remembered."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from sqlalchemy import Connection

from indexer.recordings import get_recording
from indexer.segments import segments_between
from model.audio import SAMPLE_RATE, Samples
from model.codebook import Codebook
from model.encoder import FRAME_SAMPLES
from model.tokenizer import Tokenizer
from model.tokens import TokenString
from service.clips import Clip
from service.errors import BadStretch, NoSpeech, QueryTooLong
from service.search import rescoring
from service.search.feedback import embeddings_of
from service.search.rescoring import Float32
from service.search.trim import Speech, trim

SPEECH_RMS = 0.1  # full scale is 1: what the tokenizer has heard most of
LEAST_FRAMES = 3  # of a stretch: less is no term


@dataclass(frozen=True)
class Reference:
    """Seconds [start_s, end_s) of an indexed recording, which is named by its id or its name."""

    recording: int | str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Place:
    """Seconds [start_s, end_s) of a recording."""

    recording_id: int
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Query:
    """A term as it was said once: the length of its file, where its speech lies, its tokens and embeddings.

    `embeddings` are float32 [frames, dim], to be looked up by `codebook`. `place` is where it lies in the archive
    itself, for a stretch of an indexed recording.
    """

    duration_s: float
    speech: tuple[float, float]
    tokens: TokenString
    embeddings: Float32
    codebook: Codebook
    place: Place | None = None

    @cached_property
    def tables(self) -> rescoring.Tables:
        """Its look-up tables, which take some hundred times the memory: they are made when they are needed."""
        return rescoring.make_tables(self.embeddings, self.codebook)


def hear(clip: Clip, tokenizer: Tokenizer, codebook: Codebook) -> Query:
    """Find the clip's speech, and tokenize that with the sound around it. Raises NoSpeech."""
    embeddings, speech = embed_speech(clip, tokenizer)
    shift = round(clip.start_s * SAMPLE_RATE) // FRAME_SAMPLES
    speech = Speech(speech.start + shift, speech.end + shift)
    tokens = tokenizer.collapse(embeddings, codebook, speech.start_s, codes=False)
    return Query(clip.duration_s, (speech.start_s, speech.end_s), tokens, embeddings, codebook)


def embed_speech(clip: Clip, tokenizer: Tokenizer) -> tuple[Float32, Speech]:
    """Unit embeddings float32 [frames, dim] of a clip's speech, and where in the clip that lies. Raises NoSpeech."""
    speech = trim(clip.samples)
    spoken = clip.samples[speech.start * FRAME_SAMPLES : speech.end * FRAME_SAMPLES]
    gain = _gain(spoken)
    frame = tokenizer.frame_samples
    before = clip.before[len(clip.before) % frame :]  # whole frames of the tokenizer, which may have others than trim
    samples, before, after = (np.clip(gain * part, -1.0, 1.0) for part in (clip.samples, before, clip.after))
    embeddings = tokenizer.embed(samples, before, after)
    if len(embeddings) == 0:
        raise NoSpeech(f"the clip is shorter than one frame of the tokenizer, {frame / SAMPLE_RATE:g} s")
    first = min(speech.start * FRAME_SAMPLES // frame, len(embeddings) - 1)
    return embeddings[first : max(first + 1, -(-speech.end * FRAME_SAMPLES // frame))], speech


def remember(
    reference: Reference, connection: Connection, archive_id: int, codebook: Codebook, frame_s: float, longest_s: float
) -> Query:
    """The codes of a stretch as they were stored: nothing is decoded or tokenized.

    Raises RecordingNotFound; BadStretch where the recording has no such stretch; QueryTooLong.
    """
    if reference.end_s - reference.start_s > longest_s:
        length_s = reference.end_s - reference.start_s
        raise QueryTooLong(f"{length_s:.0f} s of query, where {longest_s:g} s are allowed", "end")
    place, tokens, duration_s = _stored(reference, connection, archive_id, frame_s)
    return Query(duration_s, (place.start_s, place.end_s), tokens, embeddings_of(tokens, codebook), codebook, place)


def locate(reference: Reference, connection: Connection, archive_id: int, frame_s: float) -> tuple[Place, TokenString]:
    """A stretch as it was stored. Raises RecordingNotFound; BadStretch where the recording has no such stretch."""
    place, tokens, _ = _stored(reference, connection, archive_id, frame_s)
    return place, tokens


def _stored(
    reference: Reference, connection: Connection, archive_id: int, frame_s: float
) -> tuple[Place, TokenString, float]:
    """Where a stretch lies, its codes from the segment that has the most of it, and its recording's seconds."""
    start_s, end_s = reference.start_s, reference.end_s
    if end_s <= start_s:
        raise BadStretch(f"the stretch ends at {end_s:g} s, before it begins at {start_s:g} s", "end")
    recording = get_recording(connection, archive_id, reference.recording)
    best: TokenString | None = None
    for row in segments_between(connection, recording.id, start_s, end_s, frame_s):
        tokens = TokenString.from_bytes(row.tokens)
        first = max(0, round((start_s - tokens.offset) / frame_s))
        stop = min(tokens.frames, round((end_s - tokens.offset) / frame_s))
        if stop > first and (best is None or stop - first > best.frames):
            best = tokens.part(first, stop)
    if best is None or best.frames < LEAST_FRAMES:
        raise BadStretch(
            f"{start_s:g} s to {end_s:g} s is no stretch of {recording.name!r}, which has {recording.duration_s:.2f} s",
            "start",
        )
    return Place(recording.id, best.offset, best.offset + best.duration), best, recording.duration_s


def _gain(speech: Samples) -> np.float32:
    """What brings speech to the usual level: a quiet query is heard like a loud one."""
    return np.float32(SPEECH_RMS / np.sqrt(np.mean(np.square(speech))))
