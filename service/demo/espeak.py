"""espeak-ng through its C library: text in, samples and the time of each word out. Needed only to remake the demo."""

from __future__ import annotations

import ctypes
import ctypes.util
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_SYNCHRONOUS = 2
_CHARACTERS, _UTF8 = 1, 1
_RATE, _PITCH = 1, 3
_EVENT_LIST_TERMINATED, _EVENT_WORD = 0, 1


class EspeakError(RuntimeError):
    """espeak-ng is not there, or will not speak."""

    code = "espeak_failed"


@dataclass(frozen=True)
class Word:
    """A word of the text: its characters [begin, end) and the time at which espeak begins to say it."""

    begin: int
    end: int
    start_s: float


@dataclass(frozen=True, eq=False)
class Speech:
    """What was said: float32 samples at `rate` Hz, and its words in order."""

    samples: npt.NDArray[np.float32]
    rate: int
    words: tuple[Word, ...]


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position_ms", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class Espeak:
    """The engine: one a process. Raises EspeakError where the library is missing or refuses a voice."""

    def __init__(self) -> None:
        found = ctypes.util.find_library("espeak-ng")
        if found is None:
            raise EspeakError("libespeak-ng is not installed (Debian: apt-get install espeak-ng)")
        self._library = ctypes.CDLL(found)
        self.rate = int(self._library.espeak_Initialize(_SYNCHRONOUS, 0, None, 0))
        if self.rate <= 0:
            raise EspeakError("espeak-ng finds no voices")
        # Kept on the object: the library holds on to the pointer and does not keep the function alive.
        self._hear = _Callback(self._heard)
        self._library.espeak_SetSynthCallback(self._hear)
        self._blocks: list[npt.NDArray[np.int16]] = []
        self._words: list[Word] = []

    def say(self, text: str, voice: str, words_per_minute: int, pitch: int) -> Speech:
        """Speak `text`; `voice` is the file of a voice with its variant, `pitch` goes from 0 to 99.

        `gmw/en+f1` is British English as said by f1. (By its language, `en-gb+f1`, a voice loses its variant.)
        """
        self._blocks, self._words = [], []
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise EspeakError(f"espeak-ng has no voice {voice!r}")
        self._library.espeak_SetParameter(_RATE, words_per_minute, 0)
        self._library.espeak_SetParameter(_PITCH, pitch, 0)
        encoded = text.encode()
        failed = self._library.espeak_Synth(
            encoded, ctypes.c_size_t(len(encoded) + 1), 0, _CHARACTERS, 0, _UTF8, None, None
        )
        self._library.espeak_Synchronize()
        if failed or not self._blocks:
            raise EspeakError(f"espeak-ng does not say {text[:40]!r}")
        samples = np.concatenate(self._blocks).astype(np.float32) / np.float32(32_768)
        return Speech(samples, self.rate, tuple(self._words))

    def _heard(self, block: ctypes._Pointer[ctypes.c_short], length: int, events: ctypes._Pointer[_Event]) -> int:
        if block and length > 0:
            self._blocks.append(np.ctypeslib.as_array(block, (length,)).copy())
        at = 0
        while events[at].type != _EVENT_LIST_TERMINATED:
            event = events[at]
            if event.type == _EVENT_WORD:
                begin = event.text_position - 1
                self._words.append(Word(begin, begin + event.length, event.audio_position_ms / 1000))
            at += 1
        return 0
