"""What rooms, microphones and the world do to speech, in batches: gain, tilt, noise, reverberation, telephone band."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from model.audio import SAMPLE_RATE


@dataclass(frozen=True)
class Augmentation:
    """Probabilities and ranges; levels in dB, times in seconds."""

    gain_db: tuple[float, float] = (-20.0, 6.0)
    noise: float = 0.5
    snr_db: tuple[float, float] = (3.0, 25.0)
    room: float = 0.33
    decay_s: tuple[float, float] = (0.1, 0.7)
    tilt: float = 0.5
    tilt_db: float = 9.0  # at the edge of the band, up or down
    telephone: float = 0.08
    companding: float = 0.05  # share coded to 8 bits by the mu-law of telephone lines
    vocal_tract: float = 0.4
    warp: float = 0.12  # of frequencies, up or down


def _uniform(
    low: float, high: float, shape: tuple[int, ...], generator: torch.Generator, device: torch.device
) -> Tensor:
    return torch.empty(shape, device=device).uniform_(low, high, generator=generator)


def _room_responses(count: int, spec: Augmentation, generator: torch.Generator, device: torch.device) -> Tensor:
    """Direct sound and exponentially decaying noise, float32 [count, samples], each of unit energy."""
    length = int(spec.decay_s[1] * SAMPLE_RATE)
    time = torch.arange(length, device=device) / SAMPLE_RATE
    decay = _uniform(*spec.decay_s, (count, 1), generator, device)
    tail = torch.randn((count, length), generator=generator, device=device) * torch.exp(-6.9 * time / decay)
    tail = tail / tail.norm(dim=1, keepdim=True).clamp(min=1e-6)
    wet = 10 ** (_uniform(-12.0, 3.0, (count, 1), generator, device) / 20)
    response = tail * wet
    response[:, 0] += 1.0
    return torch.nn.functional.normalize(response, dim=1)


def augment(
    waveform: Tensor, noise: Tensor, spec: Augmentation, generator: torch.Generator, rooms: Tensor | None = None
) -> Tensor:
    """A changed copy of float32 [batch, samples]; `noise` of the same shape is added to some rows.

    With `rooms` float32 [rooms, samples] (see `rooms.simulate`) half of those in a room are in one of them.
    All in the frequency domain at once: room, tilt and band are one product of spectra.
    """
    batch, samples = waveform.shape
    device = waveform.device
    points = samples + int(spec.decay_s[1] * SAMPLE_RATE)
    points += points % 2
    bins = points // 2 + 1
    response = torch.ones((batch, bins), dtype=torch.complex64, device=device)
    in_room = torch.rand(batch, generator=generator, device=device) < spec.room
    if in_room.any():
        around = _room_responses(int(in_room.sum()), spec, generator, device)
        response[in_room] = torch.fft.rfft(around, points)
        chosen = in_room & (torch.rand(batch, generator=generator, device=device) < 0.5)
        if rooms is not None and chosen.any():
            which = torch.randint(len(rooms), (int(chosen.sum()),), generator=generator, device=device)
            response[chosen] = torch.fft.rfft(rooms.to(device)[which], points)
    at = torch.linspace(-1.0, 1.0, bins, device=device)
    tilted = (torch.rand((batch, 1), generator=generator, device=device) < spec.tilt).float()
    tilt_db = _uniform(-spec.tilt_db, spec.tilt_db, (batch, 1), generator, device) * tilted
    response *= 10 ** (tilt_db * at / 20)
    narrow = torch.rand((batch, 1), generator=generator, device=device) < spec.telephone
    hz = torch.linspace(0, SAMPLE_RATE / 2, bins, device=device)
    band = ((hz > 300) & (hz < 3_400)).float()[None].expand(batch, -1)
    response *= torch.where(narrow, band.clamp(min=1e-3), torch.ones_like(band))
    out: Tensor = torch.fft.irfft(torch.fft.rfft(waveform, points) * response, points)[:, :samples]

    noisy = torch.rand((batch, 1), generator=generator, device=device) < spec.noise
    snr = _uniform(*spec.snr_db, (batch, 1), generator, device)
    level = out.square().mean(1, keepdim=True) / noise.square().mean(1, keepdim=True).clamp(min=1e-9)
    out = out + noise * torch.where(noisy, (level * 10 ** (-snr / 10)).sqrt(), torch.zeros_like(level))
    gain = 10 ** (_uniform(*spec.gain_db, (batch, 1), generator, device) / 20)
    out = (out * gain).clamp(-1.0, 1.0)
    coded = torch.rand((batch, 1), generator=generator, device=device) < spec.companding
    return torch.where(coded, _companded(out), out)


def _companded(x: Tensor) -> Tensor:
    """ITU-T G.711 mu-law there and back, in its continuous form: 8 bits."""
    mu = 255.0
    code = torch.sign(x) * torch.log1p(mu * x.abs()) / math.log1p(mu)
    code = torch.round(code * 127.0) / 127.0
    return torch.sign(code) * torch.expm1(code.abs() * math.log1p(mu)) / mu


def warp_vocal_tract(mel: Tensor, spec: Augmentation, generator: torch.Generator) -> Tensor:
    """Log-mels [batch, bands, time] with their bands stretched or squeezed on some rows (Jaitly and Hinton 2013).

    On the mel scale the warp is linear here: a longer vocal tract moves all formants down together.
    """
    batch, bands, _ = mel.shape
    warped = (torch.rand((batch, 1), generator=generator, device=mel.device) < spec.vocal_tract).float()
    factor = 1.0 + _uniform(-spec.warp, spec.warp, (batch, 1), generator, mel.device) * warped
    at = (torch.arange(bands, device=mel.device)[None] * factor).clamp(max=bands - 1.0)
    low = at.floor().long()
    part = (at - low)[..., None].to(mel.dtype)
    high = (low + 1).clamp(max=bands - 1)
    rows = torch.arange(batch, device=mel.device)[:, None]
    return mel[rows, low] * (1 - part) + mel[rows, high] * part
