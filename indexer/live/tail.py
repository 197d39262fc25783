"""A recording that grows, as segments: those that are final, and those that would be if it ended now."""

from __future__ import annotations

from indexer.intake import NewSegment
from indexer.messages import Part
from indexer.segment import Segment, Segmenter
from model.audio import SAMPLE_RATE, Samples
from model.codebook import Codebook
from model.tokenizer import Tokenizer


class Tail:
    """Tokens of one recording as its sound comes; at its end they are those that an index run gives its file.

    The embeddings of all of it are held (a kilobyte a frame), so that another codebook needs no second hearing.
    """

    def __init__(self, tokenizer: Tokenizer, codebook: Codebook) -> None:
        info = tokenizer.info
        self.tokenizer = tokenizer
        self._codebook = codebook
        self._cutter = Segmenter(info.left_context_samples, info.right_context_samples, tokenizer.frame_samples)
        self._parts: list[Part] = []
        self.final: list[NewSegment] = []  # whatever comes, these stay

    @property
    def samples(self) -> int:
        """How many have been taken."""
        return self._cutter.total_samples

    @property
    def duration_s(self) -> float:
        """Seconds taken."""
        return self._cutter.total_samples / SAMPLE_RATE

    @property
    def is_empty(self) -> bool:
        """Whether there is not one frame yet."""
        return self._cutter.total_samples < self._cutter.frame_samples

    def take(self, samples: Samples) -> None:
        """The recording goes on: float32 [n]."""
        for segment in self._cutter.take(samples):
            part = self._heard(segment)
            self._parts.append(part)
            self.final.append(self._tokens(part))

    def rest(self) -> list[NewSegment]:
        """The segments after the final ones, if the recording ended here."""
        return [self._tokens(self._heard(segment)) for segment in self._cutter.rest()]

    def use(self, codebook: Codebook) -> None:
        """From here on, tokens are of this codebook, also those of what has been taken."""
        self._codebook = codebook
        self.final = [self._tokens(part) for part in self._parts]

    def _heard(self, segment: Segment) -> Part:
        embeddings = self.tokenizer.embed(segment.samples, segment.before, segment.after)
        return Part(segment.start_frame, embeddings, segment.speech)

    def _tokens(self, part: Part) -> NewSegment:
        start_s = part.start_frame * self.tokenizer.info.frame_seconds
        string = self.tokenizer.collapse(part.embeddings, self._codebook, start_s)
        return NewSegment(start_s, string.frames, string.to_bytes())
