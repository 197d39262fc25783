"""The tokenizer at run time: one ONNX file; samples in, embeddings and token strings out."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from model.audio import SAMPLE_RATE, Samples
from model.codebook import Codebook, CodebookError
from model.declaration import TokenizerInfo, declaration
from model.subgraph import following
from model.tokens import TokenString

DEFAULT_WEIGHTS = Path(__file__).parent / "weights" / "fast.onnx"
EARLIER_WEIGHTS = DEFAULT_WEIGHTS.with_name("fast-4.onnx")  # for archives that it made
BLOCK_FRAMES = 1_000  # 40 s: what one run of the graph is given, context apart
LONGEST_S = 29.0  # what one run of a `segment` tokenizer is given at most
OVERLAP_S = 2.0  # between the runs over what is longer

__all__ = ["DEFAULT_WEIGHTS", "Device", "Tokenizer", "TokenizerError", "TokenizerInfo", "open_session"]

Float32 = npt.NDArray[np.float32]
Device = Literal["cpu", "cuda"]


class TokenizerError(Exception):
    """A file that is no tokenizer, or breaks the contract: the message says where."""

    code = "tokenizer_invalid"


class Tokenizer:
    """Samples at 16 kHz in, unit embeddings and tokens out. Threads may share one.

    Raises TokenizerError where the file is missing or does not honour the contract.
    """

    def __init__(self, path: Path | str = DEFAULT_WEIGHTS, *, threads: int = 0, device: Device = "cpu") -> None:
        self.path = Path(path)
        try:
            blob = self.path.read_bytes()
        except OSError as error:
            raise TokenizerError(f"cannot read the tokenizer {self.path}: {error.strerror or error}") from error
        read = declaration(blob)
        if read.info is None or read.codebook is None or read.errors:
            raise TokenizerError(f"{self.path} {read.errors[0].message}")
        try:
            session = open_session(blob, threads, device)
            generates = read.info.tokens == "generated"
            writer = open_session(following(blob, "embeddings", "ids"), threads, device) if generates else None
        except Exception as error:  # ONNX Runtime raises many kinds
            raise TokenizerError(f"{self.path} cannot be run: {str(error).splitlines()[0]}") from error
        self._adopt(read.info, read.codebook, session, writer)

    @classmethod
    def of_session(
        cls, path: Path, info: TokenizerInfo, codebook: Codebook, session: ort.InferenceSession
    ) -> Tokenizer:
        """A file that is open already and may break the contract in what these parts do not tell."""
        tokenizer = cls.__new__(cls)
        tokenizer.path = path
        tokenizer._adopt(info, codebook, session)
        return tokenizer

    def _adopt(
        self, info: TokenizerInfo, codebook: Codebook, session: ort.InferenceSession,
        writer: ort.InferenceSession | None = None,
    ) -> None:  # fmt: skip
        self.info = info
        self._writer = writer
        self.codebook = codebook
        self._session = session
        self.device: Device = "cuda" if "CUDAExecutionProvider" in session.get_providers() else "cpu"
        self.frame_samples = round(info.frame_seconds * SAMPLE_RATE)

    def embed(self, samples: Samples, before: Samples | None = None, after: Samples | None = None) -> Float32:
        """Unit embeddings float32 [len(samples) // frame samples, dim].

        `before` and `after` are the samples around, where they are known: with at least the declared context (or
        all there is up to the ends of the recording) a stretch gets exactly what one pass over everything gives it.
        `before` must be a whole number of frames long. A `segment` tokenizer hears all of it as one segment; what is
        longer than 29 s it gets in windows of equal length that overlap by 2 s, and each keeps the inner half of an
        overlap.
        """
        frames = len(samples) // self.frame_samples
        if frames == 0:
            return np.zeros((0, self.codebook.dim), np.float32)
        before = samples[:0] if before is None else before
        after = samples[:0] if after is None else after
        if len(before) % self.frame_samples:
            raise ValueError(f"{len(before)} samples before are no whole number of {self.frame_samples}-sample frames")
        whole = np.concatenate([before, samples, after])
        first = len(before) // self.frame_samples
        if self.info.context == "segment":
            return self._embed_segment(whole, len(whole) // self.frame_samples)[first : first + frames]
        left = -(-self.info.left_context_samples // self.frame_samples) * self.frame_samples  # keeps the frame grid
        parts: list[Float32] = []
        while len(parts) * BLOCK_FRAMES < frames:
            start = first + len(parts) * BLOCK_FRAMES
            stop = min(start + BLOCK_FRAMES, first + frames)
            low = max(0, start * self.frame_samples - left)
            high = stop * self.frame_samples + self.info.right_context_samples
            skip = start - low // self.frame_samples
            parts.append(self._run(whole[low:high])[skip : skip + stop - start])
        return np.concatenate(parts)

    def _embed_segment(self, samples: Samples, frames: int) -> Float32:
        longest = max(2, int(LONGEST_S / self.info.frame_seconds))
        if frames <= longest:
            return self._run(samples)[:frames]
        overlap = min(round(OVERLAP_S / self.info.frame_seconds), longest // 2)
        windows = -(-(frames - overlap) // (longest - overlap))
        length = -(-(frames - overlap) // windows) + overlap
        starts = [window * (frames - length) // (windows - 1) for window in range(windows)]
        cuts = [0, *((start + length + following) // 2 for start, following in pairwise(starts)), frames]
        parts: list[Float32] = []
        for start, first, last in zip(starts, cuts[:-1], cuts[1:], strict=True):
            end = len(samples) if last == frames else (start + length) * self.frame_samples
            rows = self._run(samples[start * self.frame_samples : end])
            parts.append(rows[first - start : last - start])
        return np.concatenate(parts)

    def tokenize(self, samples: Samples, codebook: Codebook | None = None, offset: float = 0.0) -> TokenString:
        """The token string of a clip, by `codebook` or the tokenizer's own, with codes where that makes any."""
        return self.collapse(self.embed(samples), codebook, offset)

    def collapse(
        self, embeddings: Float32, codebook: Codebook | None = None, offset: float = 0.0, codes: bool = True
    ) -> TokenString:
        """The token string of embeddings float32 [frames, dim] that start `offset` seconds into the recording.

        With `codes` where the codebook makes any; who has the embeddings at hand needs none.
        """
        codebook = codebook or self.codebook
        if codebook.dim != self.codebook.dim:
            raise CodebookError(f"a codebook of {codebook.dim} dimensions for a tokenizer of {self.codebook.dim}")
        ids = codebook.tokenize(embeddings) if self._writer is None else self._written(embeddings, codebook)
        pq = codebook.encode(embeddings, ids) if codes and codebook.parts else None
        return TokenString.from_frames(ids, self.info.frame_seconds, offset, pq)

    def _written(self, embeddings: Float32, codebook: Codebook) -> npt.NDArray[np.uint16]:
        """The tokens that a generating graph writes for embeddings: uint16 [frames]."""
        if codebook.size != self.codebook.size:
            raise CodebookError(f"{self.path} writes tokens of its own codebook of {self.codebook.size}, no other's")
        if self._writer is None or len(embeddings) == 0:
            return np.zeros(len(embeddings), np.uint16)
        ids = self._writer.run(["ids"], {"embeddings": np.ascontiguousarray(embeddings[None], np.float32)})[0][0]
        return np.asarray(ids, np.uint16)

    def frame_ids(self, samples: Samples) -> npt.NDArray[np.int64]:
        """The graph's own ids of one pass: int64 [frames]."""
        return np.asarray(self._session.run(["ids"], {"waveform": samples[None]})[0][0])

    def embed_rows(self, waveforms: Float32) -> Float32:
        """Unit embeddings float32 [batch, frames, dim] of waveforms float32 [batch, samples], each by itself.

        One run of the graph: what is long, or has sound around it, is for `embed`. Raises TokenizerError where the
        graph gives too few.
        """
        out = self._session.run(["embeddings"], {"waveform": np.ascontiguousarray(waveforms, np.float32)})
        rows = np.asarray(out[0], np.float32)
        wanted = waveforms.shape[1] // self.frame_samples
        if rows.shape[1] < wanted:
            raise TokenizerError(f"{self.path} gave {rows.shape[1]} embeddings for {wanted} frames")
        return rows

    def _run(self, samples: Samples) -> Float32:
        rows: Float32 = self.embed_rows(samples[None])[0]
        return rows


def open_session(blob: bytes, threads: int = 0, device: Device = "cpu") -> ort.InferenceSession:
    """ONNX Runtime's session of a file's bytes; raises ONNX Runtime's own errors."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Threads that wait for work by spinning would take the cores from the stages that follow.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers = ["CPUExecutionProvider"]
    if device == "cuda" and "CUDAExecutionProvider" in ort.get_available_providers():
        providers.insert(0, "CUDAExecutionProvider")
    return ort.InferenceSession(blob, options, providers=providers)
