"""Rooms, noise, telephones and vocal tracts."""

import numpy as np
import pytest
import torch

from model.training.augment import Augmentation, _companded, augment, warp_vocal_tract

pytestmark = pytest.mark.training


def test_augmentation_changes_the_sound_and_stays_in_range() -> None:
    generator = torch.Generator().manual_seed(0)
    waveform = torch.randn(16, 16_000) * 0.1
    always = Augmentation(noise=1.0, room=1.0, tilt=1.0, telephone=1.0)
    out = augment(waveform, torch.randn(16, 16_000), always, generator)
    assert out.shape == waveform.shape
    assert torch.isfinite(out).all()
    assert out.abs().max() <= 1.0
    nothing = Augmentation(gain_db=(0.0, 0.0), noise=0.0, room=0.0, tilt=0.0, telephone=0.0, companding=0.0)
    assert torch.allclose(augment(waveform, waveform, nothing, generator), waveform, atol=1e-4)


def test_companding_is_mu_law_in_eight_bits() -> None:
    x = torch.linspace(-1.0, 1.0, 20_001)
    out = _companded(x)
    assert len(out.unique()) == 255
    assert torch.equal(out, -out.flip(0))
    assert float(out[10_000]) == 0.0
    assert float(out.max()) == pytest.approx(1.0)
    # The textbook's formula, sample by sample: compress, round to 127 steps each way, expand.
    for value in (0.003, 0.02, -0.1, 0.5, -0.93):
        code = np.round(np.log(1 + 255 * abs(value)) / np.log(256) * 127)
        expected = np.sign(value) * (256 ** (code / 127) - 1) / 255
        assert float(_companded(torch.tensor(value))) == pytest.approx(expected, rel=1e-4)
    # The error is a share of the level, not a step of fixed size.
    loud = x.abs() > 0.02
    assert float(((out - x).abs() / x.abs())[loud].max()) < 0.03


def test_companding_reaches_the_share_of_rows_it_is_meant_for() -> None:
    generator = torch.Generator().manual_seed(0)
    waveform = torch.rand(400, 100) - 0.5
    spec = Augmentation(gain_db=(0.0, 0.0), noise=0.0, room=0.0, tilt=0.0, telephone=0.0, companding=0.25)
    out = augment(waveform, waveform, spec, generator)
    coded = (out - waveform).abs().amax(1) > 1e-4
    assert 60 < int(coded.sum()) < 140
    assert torch.allclose(out[coded], _companded(waveform[coded]), atol=1e-2)


def test_a_vocal_tract_of_the_same_length_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    mel = torch.randn(5, 64, 20)
    assert torch.equal(warp_vocal_tract(mel, Augmentation(vocal_tract=0.0), generator), mel)
    assert torch.equal(warp_vocal_tract(mel, Augmentation(vocal_tract=1.0, warp=0.0), generator), mel)


def test_a_vocal_tract_of_another_length_moves_the_bands() -> None:
    generator = torch.Generator().manual_seed(0)
    bands = torch.arange(64.0)[None, :, None].expand(200, 64, 7)
    out = warp_vocal_tract(bands, Augmentation(vocal_tract=0.5, warp=0.12), generator)
    assert out.shape == bands.shape
    # Of log-mels that are a ramp the warped ones show the factor, and the top band ends it.
    factor = out[:, 40, 0] / 40
    assert torch.allclose(out, (bands * factor[:, None, None]).clamp(max=63.0), atol=1e-4)
    changed = factor != 1.0
    assert 70 < int(changed.sum()) < 130
    assert 0.88 <= float(factor.min()) < 0.9
    assert 1.1 < float(factor.max()) <= 1.12
