"""The tokenizer at run time: one ONNX file; samples in, embeddings and token strings out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnx.numpy_helper
import onnxruntime as ort

from model.audio import SAMPLE_RATE, Samples
from model.codebook import Codebook, CodebookError
from model.tokens import TokenString

DEFAULT_WEIGHTS = Path(__file__).parent / "weights" / "fast.onnx"
BLOCK_FRAMES = 1_000  # 40 s: what one run of the graph is given, context apart

Float32 = npt.NDArray[np.float32]
Device = Literal["cpu", "cuda"]


class TokenizerError(Exception):
    """A file that is no tokenizer, or breaks the contract: the message says where."""

    code = "tokenizer_invalid"


@dataclass(frozen=True)
class TokenizerInfo:
    """What the file says of itself."""

    name: str
    version: str
    frame_seconds: float
    context: Literal["bounded", "segment"]
    left_context_samples: int
    right_context_samples: int
    licence: str
    trained_on: str
    sha256: str


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
        self.info, self.codebook = _read_contract(blob, self.path)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Threads that wait for work by spinning would take the cores from the stages that follow.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        available = ort.get_available_providers()
        providers = ["CPUExecutionProvider"]
        if device == "cuda" and "CUDAExecutionProvider" in available:
            providers.insert(0, "CUDAExecutionProvider")
        self._session = ort.InferenceSession(blob, options, providers=providers)
        self.device: Device = "cuda" if "CUDAExecutionProvider" in self._session.get_providers() else "cpu"
        self.frame_samples = round(self.info.frame_seconds * SAMPLE_RATE)

    def embed(self, samples: Samples, before: Samples | None = None, after: Samples | None = None) -> Float32:
        """Unit embeddings float32 [len(samples) // frame samples, dim].

        `before` and `after` are the samples around, where they are known: with at least the declared context (or
        all there is up to the ends of the recording) a stretch gets exactly what one pass over everything gives it.
        `before` must be a whole number of frames long. A `segment` tokenizer takes no notice of them.
        """
        frames = len(samples) // self.frame_samples
        if frames == 0:
            return np.zeros((0, self.codebook.dim), np.float32)
        if self.info.context == "segment":
            return self._run(samples)[:frames]
        before = samples[:0] if before is None else before
        after = samples[:0] if after is None else after
        if len(before) % self.frame_samples:
            raise ValueError(f"{len(before)} samples before are no whole number of {self.frame_samples}-sample frames")
        whole = np.concatenate([before, samples, after])
        first = len(before) // self.frame_samples
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

    def tokenize(self, samples: Samples, codebook: Codebook | None = None, offset: float = 0.0) -> TokenString:
        """The token string of a clip, by `codebook` or the tokenizer's own, with codes where that has a quantiser."""
        return self.collapse(self.embed(samples), codebook, offset)

    def collapse(self, embeddings: Float32, codebook: Codebook | None = None, offset: float = 0.0) -> TokenString:
        """The token string of embeddings float32 [frames, dim] that start `offset` seconds into the recording."""
        codebook = codebook or self.codebook
        if codebook.dim != self.codebook.dim:
            raise CodebookError(f"a codebook of {codebook.dim} dimensions for a tokenizer of {self.codebook.dim}")
        ids = codebook.tokenize(embeddings)
        pq = None if codebook.pq is None else codebook.encode(embeddings, ids)
        return TokenString.from_frames(ids, self.info.frame_seconds, offset, pq)

    def frame_ids(self, samples: Samples) -> npt.NDArray[np.int64]:
        """The graph's own ids of one pass: int64 [frames]."""
        return np.asarray(self._session.run(["ids"], {"waveform": samples[None]})[0][0])

    def _run(self, samples: Samples) -> Float32:
        out = self._session.run(["embeddings"], {"waveform": np.ascontiguousarray(samples, np.float32)[None]})
        return np.asarray(out[0][0], np.float32)


def _read_contract(blob: bytes, path: Path) -> tuple[TokenizerInfo, Codebook]:
    try:
        model = onnx.load_model_from_string(blob)
        onnx.checker.check_model(model)
    except Exception as error:  # the parser and the checker raise many kinds
        raise TokenizerError(f"{path} is not an ONNX file: {str(error).splitlines()[0]}") from error
    inputs = [value.name for value in model.graph.input]
    outputs = [value.name for value in model.graph.output]
    if "waveform" not in inputs or not {"ids", "embeddings"} <= set(outputs):
        raise TokenizerError(
            f"{path} has inputs {inputs} and outputs {outputs}: waveform, ids and embeddings are needed"
        )
    arrays = {
        tensor.name: np.asarray(onnx.numpy_helper.to_array(tensor), np.float32)
        for tensor in model.graph.initializer
        if tensor.name in ("codebook", "pq")
    }
    if "codebook" not in arrays:
        raise TokenizerError(f"{path} has no initialiser named codebook")
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    try:
        context = metadata["context"]
        if context not in ("bounded", "segment"):
            raise TokenizerError(f"{path} declares context {context!r}: bounded or segment is needed")
        info = TokenizerInfo(
            name=metadata["name"],
            version=metadata["version"],
            frame_seconds=float(metadata["frame_seconds"]),
            context="bounded" if context == "bounded" else "segment",
            left_context_samples=int(metadata["left_context_samples"]),
            right_context_samples=int(metadata["right_context_samples"]),
            licence=metadata["licence"],
            trained_on=metadata["trained_on"],
            sha256=hashlib.sha256(blob).hexdigest(),
        )
    except KeyError as error:
        raise TokenizerError(f"{path} lacks the metadata entry {error.args[0]!r}") from error
    except ValueError as error:
        raise TokenizerError(f"{path} has a metadata entry that is no number: {error}") from error
    return info, Codebook(arrays["codebook"], arrays.get("pq"))
