from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from auralign.errors import AudioError
from auralign.separation.stream import OVERLAP, STEP, WINDOW, MaskStream, NativeGrid, StemStream

RATES_HZ = (8000, 11025, 16000, 22050, 44100, 48000, 96000, 192000)


def ulps(out, mixture):
    """How far stems and residual are from the mixture, in units of the larger term's last place."""
    stems = out.targets.sum(axis=0, dtype=np.float32)
    largest = np.maximum(np.abs(stems), np.maximum(np.abs(out.residual), np.abs(mixture)))
    return float((np.abs(stems + out.residual - mixture) / np.spacing(largest)).max())


def masks_of(stream: MaskStream, wave: torch.Tensor) -> torch.Tensor:
    return torch.cat([stream.process(wave), stream.process(wave[:, :0], True)], dim=-1)


@pytest.mark.parametrize(("rate_hz", "channels"), [(16000, 1), (44100, 2), (8000, 3)])
def test_blocks_of_any_size_give_the_same_bits(rate_hz, channels, tiny, queries, noise, through):
    wave = noise(channels, int(9.3 * rate_hz))
    whole = through(StemStream(tiny, queries(2), rate_hz, channels), wave)
    for sizes in ((rate_hz,), (7777, 3, 50_000), (rate_hz * 4 + 1,)):
        parts = through(StemStream(tiny, queries(2), rate_hz, channels), wave, sizes)
        assert np.array_equal(parts.targets, whole.targets)
        assert np.array_equal(parts.residual, whole.residual)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_length_of_a_step_changes_rounding_only(steps, tiny, queries, noise, through, monkeypatch):
    wave = noise(2, 44100 * 7)
    usual = through(StemStream(tiny, queries(1), 44100, 2), wave)
    monkeypatch.setattr("auralign.separation.stream._BLOCK_S", steps * 0.37)
    other = through(StemStream(tiny, queries(1), 44100, 2), wave)
    np.testing.assert_allclose(other.targets, usual.targets, atol=1e-5)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 40_000), min_size=1, max_size=6), frames=st.integers(1, 90_000))
def test_any_blocks_of_any_sound_give_the_same_bits(sizes, frames, tiny, queries, noise, through):
    wave = noise(1, frames)
    blocks = tuple(max(size, frames // 100) for size in sizes)
    whole = through(StemStream(tiny, queries(1), 16000, 1), wave)
    parts = through(StemStream(tiny, queries(1), 16000, 1), wave, blocks)
    assert np.array_equal(parts.targets, whole.targets)


@pytest.mark.parametrize("frames", [1, 300, 5000, 65_000])
def test_a_sound_of_one_window_is_what_the_network_makes_of_it(frames, tiny, queries, noise, through):
    wave = noise(1, frames)
    stream = StemStream(tiny, queries(2), 16000, 1, shared=False)
    streamed = through(stream, wave, (4001,))
    with torch.no_grad():
        whole, presence = tiny.separate_wave(torch.from_numpy(wave), queries(2)[None])
    np.testing.assert_allclose(streamed.targets[:, 0], whole[0].numpy(), atol=2e-6)
    assert stream.masks.presence.overall(2) == pytest.approx(presence[0].tolist(), abs=1e-4)


def test_away_from_seams_masks_are_what_the_network_makes_of_the_window(tiny, queries, noise):
    wave = torch.from_numpy(noise(1, 16000 * 9))
    masks = masks_of(MaskStream(tiny, queries(1), 1), wave)
    spec = tiny.spectrogram(wave)
    assert masks.shape[-1] == spec.shape[-1]
    begin, end = STEP, STEP + WINDOW  # the second window
    part = wave[:, begin * tiny.hop : end * tiny.hop]
    with torch.no_grad():
        magnitude = torch.complex(spec[..., begin:end].abs(), torch.zeros(1, 513, WINDOW))
        answer = tiny.net.answer(tiny.net.analyse(magnitude, part), queries(1)[None])
    alone = slice(begin + OVERLAP, end - OVERLAP)
    np.testing.assert_allclose(masks[..., alone], answer.mask[0][..., OVERLAP:-OVERLAP], atol=1e-5)


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_stems_add_up_at_every_rate(rate_hz, tiny, queries, noise, through):
    wave = noise(2, int(0.7 * rate_hz))
    out = through(StemStream(tiny, queries(3), rate_hz, 2), wave, (5000,))
    assert out.targets.shape == (3, *wave.shape)
    assert ulps(out, wave) <= 1.0


@pytest.mark.parametrize("channels", range(1, 9))
def test_stems_add_up_with_any_number_of_channels(channels, tiny, queries, noise, through):
    wave = noise(channels, 11_111)
    out = through(StemStream(tiny, queries(2), 22050, channels), wave)
    assert out.residual.shape == wave.shape
    assert ulps(out, wave) <= 1.0


@pytest.mark.parametrize("rate_hz", [8000, 16000, 44100, 192000])
@pytest.mark.parametrize("frames", [1, 2, 255, 256, 257, 1025, 4097])
def test_length_is_kept_down_to_one_sample(frames, rate_hz, tiny, queries, noise, through):
    wave = noise(1, frames)
    out = through(StemStream(tiny, queries(1), rate_hz, 1), wave)
    assert out.residual.shape == wave.shape
    assert ulps(out, wave) <= 1.0


@pytest.mark.slow
def test_a_minute_and_more_keeps_length_and_sum(tiny, queries, noise, through):
    wave = noise(2, 70 * 16000 + 1)
    out = through(StemStream(tiny, queries(2), 16000, 2), wave, (16000,))
    assert out.residual.shape == wave.shape
    assert ulps(out, wave) <= 1.0


@pytest.mark.parametrize("rate_hz", [1000, 4567, *RATES_HZ])
def test_masks_of_one_give_the_recording_back_and_of_zero_nothing(
    rate_hz, answering, queries, noise, through
):
    wave = noise(2, int(1.3 * rate_hz))
    ones = through(StemStream(answering(1.0), queries(1), rate_hz, 2), wave, (4099,))
    np.testing.assert_allclose(ones.targets[0], wave, atol=2e-6)
    np.testing.assert_allclose(ones.residual, 0, atol=2e-6)
    zeros = through(StemStream(answering(0.0), queries(1), rate_hz, 2), wave)
    assert not zeros.targets.any()
    assert np.array_equal(zeros.residual, wave)


def test_masks_land_on_their_own_time(answering, queries, noise, through):
    """A mask that is open for the first 2 s lets through just these, at a rate whose hop does not fit."""
    rate_hz = 44100
    model = answering(lambda count, frames: (torch.arange(frames) < 125).float().expand(count, 513, -1))
    wave = noise(1, 4 * rate_hz)  # 251 frames: one window
    out = through(StemStream(model, queries(1), rate_hz, 1), wave)
    first_s, last_s = 124 * 0.016 - 0.033, 124 * 0.016 + 0.035  # around the last open frame, by half a window
    before, after = slice(0, int(first_s * rate_hz)), slice(int(last_s * rate_hz), None)
    np.testing.assert_allclose(out.targets[0, :, before], wave[:, before], atol=1e-5)
    np.testing.assert_allclose(out.targets[0, :, after], 0, atol=1e-5)


def test_masks_land_on_their_own_frequency(answering, queries, through):
    """Open below 2 kHz: of two tones the lower one passes, at the level it had."""
    rate_hz = 48000
    model = answering(
        lambda count, frames: (torch.arange(513) < 128).float()[:, None].expand(count, -1, frames)
    )
    t = np.arange(2 * rate_hz) / rate_hz
    low, high = 0.3 * np.sin(2 * np.pi * 1500 * t), 0.3 * np.sin(2 * np.pi * 3000 * t)
    out = through(StemStream(model, queries(1), rate_hz, 1), (low + high)[None].astype(np.float32))
    middle = slice(rate_hz // 2, -rate_hz // 2)
    np.testing.assert_allclose(out.targets[0, 0, middle], low[middle], atol=1e-3)


def test_above_the_models_band_the_mask_of_its_upper_quarter_goes_on(answering, queries, through):
    rate_hz = 48000
    upper = 0.25 * (torch.arange(513) >= 300).float()[:, None]
    model = answering(lambda count, frames: upper.expand(count, -1, frames))
    tone = (0.3 * np.sin(2 * np.pi * 15000 * np.arange(rate_hz) / rate_hz))[None].astype(np.float32)
    out = through(StemStream(model, queries(1), rate_hz, 1), tone)
    middle = slice(10_000, -10_000)
    np.testing.assert_allclose(out.targets[0][:, middle], 0.25 * tone[:, middle], atol=1e-4)


def test_stereo_image_is_kept(tiny, queries, noise, through):
    mono = noise(1, 40_000)
    out = through(StemStream(tiny, queries(1), 44100, 2), np.concatenate([mono, np.float32(0.25) * mono]))
    np.testing.assert_allclose(out.targets[0, 1], 0.25 * out.targets[0, 0], atol=1e-7)
    assert out.targets.any()


def test_out_of_phase_stereo_is_heard(tiny, queries, noise, through):
    mono = noise(1, 40_000)
    alone, both = (StemStream(tiny, queries(1), 16000, n) for n in (1, 2))
    one = through(alone, mono)
    two = through(both, np.concatenate([mono, -mono]))
    np.testing.assert_allclose(two.targets[0, :1], one.targets[0], atol=1e-5)
    np.testing.assert_allclose(two.targets[0, 1:], -one.targets[0], atol=1e-5)
    assert both.masks.presence.overall(1) == pytest.approx(alone.masks.presence.overall(1), abs=1e-4)


def test_masks_of_several_queries_share_and_never_take_more_than_all(answering, queries, noise, through):
    model, wave = answering(0.8), noise(1, 30_000)
    out = through(StemStream(model, queries(2), 16000, 1), wave)
    np.testing.assert_allclose(out.targets[0], 0.5 * wave, atol=1e-6)
    np.testing.assert_allclose(out.residual, 0, atol=1e-6)
    free = through(StemStream(model, queries(2), 16000, 1, shared=False), wave)
    np.testing.assert_allclose(free.targets[1], np.float32(0.8) * wave, atol=1e-6)
    assert ulps(free, wave) <= 1.0


def test_one_query_alone_is_never_scaled(answering, queries, noise, through):
    out = through(StemStream(answering(0.8), queries(1), 16000, 1), noise(1, 9000))
    np.testing.assert_allclose(out.targets[0], np.float32(0.8) * noise(1, 9000), atol=1e-6)


def test_seams_of_stationary_noise_make_no_step(tiny, queries, noise):
    """The mean mask changes no faster from frame to frame at seams than inside of windows."""
    level = masks_of(MaskStream(tiny, queries(1), 1), torch.from_numpy(noise(1, 16000 * 20))).mean(dim=(0, 1))
    step = (level[1:] - level[:-1]).abs()
    at_seam = torch.zeros(len(step), dtype=torch.bool)
    for seam in range(STEP, len(step) - WINDOW, STEP):
        at_seam[seam - 1 : seam + OVERLAP + 1] = True
    inside = ~at_seam
    inside[:10] = inside[-10:] = False
    assert step[at_seam].max() <= 1.5 * step[inside].max()


def test_seams_fade_from_one_window_to_the_next(answering, queries, noise):
    """Windows that answer 0, 1, 0, 1 … give ramps as long as the overlap between them."""
    turn = iter(range(100))
    model = answering(lambda count, frames: torch.full((count, 513, frames), float(next(turn) % 2)))
    masks = masks_of(MaskStream(model, queries(1), 1), torch.from_numpy(noise(1, 16000 * 12)))[0, 0]
    assert (masks[1:] - masks[:-1]).abs().max() <= 1.01 / OVERLAP
    assert masks[100] == 0.0
    assert masks[STEP + 100] == 1.0


def test_memory_does_not_grow_with_the_length(answering, queries, noise):
    stream, block = StemStream(answering(0.5), queries(1), 16000, 2), noise(2, 16000)
    held = []
    for _ in range(60):
        stream.process(block)
        held.append(held_bytes(stream))
    assert max(held[30:]) <= 1.1 * max(held[:30])
    assert max(held) < 40e6


@pytest.mark.slow
def test_memory_of_five_minutes_is_that_of_one(answering, queries, noise):
    stream, block = StemStream(answering(0.5), queries(1), 16000, 2), noise(2, 16000)
    held = []
    for _ in range(300):
        stream.process(block)
        held.append(held_bytes(stream))
    assert max(held[60:]) <= 1.05 * max(held[:60])


def held_bytes(stream: StemStream) -> int:
    """Bytes of every buffer that a stream and its parts keep."""
    total = 0
    for part in (stream, stream.masks, stream._forward, stream._inverse, stream.masks._stft):
        for value in vars(part).values():
            if isinstance(value, torch.Tensor):
                total += value.untyped_storage().nbytes()
            elif isinstance(value, np.ndarray):
                total += value.nbytes if value.base is None else value.base.nbytes
    return total


def test_silence_has_no_presence_and_stays_silent(tiny, queries, through):
    stream = StemStream(tiny, queries(2), 44100, 2)
    out = through(stream, np.zeros((2, 60_000), np.float32))
    assert not out.targets.any()
    assert not out.residual.any()
    assert stream.masks.presence.overall(2) == [0.0, 0.0]


def test_presence_is_the_largest_of_the_windows_that_are_heard(answering, queries, noise, through):
    wave = noise(1, 16000 * 16)
    wave[:, 16000 * 4 :] = 0
    stream = StemStream(answering(0.5, presence=0.7), queries(1), 16000, 1)
    through(stream, wave)
    timeline = stream.masks.presence
    assert timeline.overall(1) == [pytest.approx(0.7)]
    assert timeline.times_s[0] == 0.0
    assert all(start < 4.1 for start in timeline.times_s)


@pytest.mark.parametrize("level", [1e-12, 1e-3, 1e3, 1e20, 1e30])
def test_masks_do_not_depend_on_the_level(level, tiny, queries, noise, through):
    wave = noise(1, 20_000)
    scaled = through(StemStream(tiny, queries(1), 16000, 1), wave * np.float32(level)).targets
    assert np.isfinite(scaled).all()
    if level > 1e-6:
        plain = through(StemStream(tiny, queries(1), 16000, 1), wave).targets
        np.testing.assert_allclose(scaled / np.float32(level), plain, atol=1e-4)


def test_a_rate_below_the_models_first_bins_is_refused(tiny, queries):
    with pytest.raises(AudioError, match="sample rate is 7 Hz"):
        StemStream(tiny, queries(1), 7, 1)


def test_nothing_at_all_is_refused(tiny, queries):
    with pytest.raises(AudioError, match="no samples"):
        StemStream(tiny, queries(1), 16000, 1).process(np.zeros((1, 0), np.float32), True)


def test_the_native_grid_has_the_models_resolution(tiny):
    for rate_hz in RATES_HZ:
        grid = NativeGrid(tiny, rate_hz)
        assert grid.stft.n_fft / rate_hz == pytest.approx(0.064, rel=0.01)
        assert grid.frames_per_mask == pytest.approx(1.0, abs=0.01)
