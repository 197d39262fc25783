"""Sound files that somebody made to do harm: small, and endless, huge or broken when they are decoded."""

from __future__ import annotations

import struct

BLOCK = 65_535  # samples of a FLAC frame, at most
RATE = 16_000


def endless_flac(hours: float) -> bytes:
    """Silence of so many hours, each 4 s of it in some 15 bytes."""
    return _flac(max(1, round(hours * 3_600 * RATE / BLOCK)), RATE)


def swelling_flac() -> bytes:
    """60 bytes, which are 18 hours: one block at 1 Hz. At another rate it is a thousand million samples at once."""
    return _flac(1, 1)


def _flac(frames: int, rate: int) -> bytes:
    about = struct.pack(">HH", BLOCK, BLOCK) + bytes(6) + ((rate << 44) | (15 << 36)).to_bytes(8, "big") + bytes(16)
    head = b"fLaC" + bytes([0x80]) + len(about).to_bytes(3, "big") + about
    return head + b"".join(_frame(number) for number in range(frames))


def _frame(number: int) -> bytes:
    """Zeros: fixed block size, the file's rate, 16 bits, mono, one constant subframe."""
    header = b"\xff\xf8" + bytes([0x70, 0x08]) + chr(number).encode() + struct.pack(">H", BLOCK - 1)
    header += bytes([_crc(header, 8, 0x07)])
    body = header + bytes([0x00]) + bytes(2)
    return body + _crc(body, 16, 0x8005).to_bytes(2, "big")


def _crc(data: bytes, bits: int, polynomial: int) -> int:
    crc, top, mask = 0, 1 << (bits - 1), (1 << bits) - 1
    for byte in data:
        crc ^= byte << (bits - 8)
        for _ in range(8):
            crc = ((crc << 1) ^ polynomial if crc & top else crc << 1) & mask
    return crc


def wav(data: bytes, rate: int = RATE, claimed: int | None = None) -> bytes:
    """16 bits, mono; `claimed` is how many bytes the header says there are."""
    size = len(data) if claimed is None else claimed
    about = struct.pack("<HHIIHH", 1, 1, rate, 2 * rate, 2, 16)
    head = b"WAVE" + b"fmt " + struct.pack("<I", len(about)) + about + b"data" + struct.pack("<I", size)
    return b"RIFF" + struct.pack("<I", min(0xFFFFFFFF, size + len(head))) + head + data
