from __future__ import annotations

import numpy as np
import pytest
import torch

from auralign.enhancement.windows import Request, WindowStream, enhance_window
from auralign.errors import AudioError
from auralign.models.log_mmse import LogMmse

RATE_HZ = 16_000


def all_of(enhancer, wave: torch.Tensor, request: Request | None = None, size: int = 16_000) -> torch.Tensor:
    stream = WindowStream(enhancer, len(wave), request or Request())
    parts = [stream.process(part) for part in wave.split(size, dim=-1)]
    return torch.cat([*parts, stream.process(wave[:, :0], True)], dim=-1)


@pytest.mark.parametrize("seconds", [0.001, 3.0, 6.0, 6.00007, 11.2, 11.3, 20.0])
def test_an_enhancer_that_changes_nothing_gives_the_sound_back(seconds, identity, noise):
    wave = torch.from_numpy(noise(2, round(seconds * RATE_HZ)))
    torch.testing.assert_close(all_of(identity, wave), wave, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("channels", ["linked", "separate"])
def test_streamed_is_whole_for_an_enhancer_without_windows(channels, lowpass, noise):
    wave = torch.from_numpy(noise(1, 14 * RATE_HZ))
    streamed = all_of(lowpass, wave, Request(channels=channels))
    torch.testing.assert_close(streamed, lowpass.enhance_wave(wave), atol=1e-6, rtol=1e-5)


def test_log_mmse_streamed_is_nearly_whole(speech, noise):
    wave = torch.from_numpy(np.tile(speech, (1, 2)) + noise(1, 2 * speech.shape[1]) * 0.1)
    whole, streamed = LogMmse().enhance_wave(wave), all_of(LogMmse(), wave)
    error = (whole - streamed).square().mean() / whole.square().mean()
    assert 10 * torch.log10(error) < -15  # windows begin with estimates of the noise of their own


def test_a_sound_of_one_window_is_what_the_enhancer_makes_of_it(seeded, noise):
    wave = torch.from_numpy(noise(1, 5 * RATE_HZ))
    out = all_of(seeded, wave, Request(steps=3, seed=11))
    assert seeded.seeds == [11]
    assert seeded.steps == [3]
    assert torch.equal(out, seeded.enhance_wave(wave, seed=11))


@pytest.mark.parametrize("size", [1_111, 16_000, 150_000, 400_000])
def test_blocks_of_any_size_give_the_same_bits_and_seeds(size, seeded, noise):
    wave = torch.from_numpy(noise(1, 22 * RATE_HZ + 5))
    first = all_of(seeded, wave, Request(seed=5))
    seeds = list(seeded.seeds)
    seeded.seeds.clear()
    assert torch.equal(all_of(seeded, wave, Request(seed=5), size), first)
    assert seeded.seeds == seeds
    assert len(set(seeds)) == len(seeds) == 5


def test_windows_never_exceed_their_length(identity, noise):
    all_of(identity, torch.from_numpy(noise(1, 30 * RATE_HZ)))
    assert set(identity.lengths) == {6 * RATE_HZ}  # the last reaches back to be a whole one


def test_windows_fade_into_each_other(plain):
    """Windows that answer 1, 2, 1, 2 … give smooth ramps over the overlap's middle half."""
    turn = iter(range(100))
    steps = plain(lambda wave, seed: torch.full_like(wave, 1.0 + next(turn) % 2))
    out = all_of(steps, torch.ones(1, 16 * RATE_HZ))[0]
    ramp = 0.4 * RATE_HZ
    assert (out[1:] - out[:-1]).abs().max() <= 1.01 * np.pi / 2 / ramp
    assert out[int(5.35 * RATE_HZ)] == 1.0
    assert out[int(5.9 * RATE_HZ)] == 2.0


def test_memory_does_not_grow(half, noise):
    stream, held = WindowStream(half, 1, Request()), []
    for _ in range(40):
        stream.process(torch.from_numpy(noise(1, RATE_HZ)))
        held.append(stream._wave.untyped_storage().nbytes())
    assert max(held) <= 2 * 6.0 * RATE_HZ * 4


@pytest.mark.parametrize("channels", ["linked", "separate"])
def test_equal_channels_are_treated_as_one(channels, tiny, speech):
    mono = torch.from_numpy(speech[:, :20_000])
    one = enhance_window(tiny, mono, Request(channels=channels))
    two = enhance_window(tiny, mono.expand(2, -1).contiguous(), Request(channels=channels))
    torch.testing.assert_close(two, one.expand(2, -1), atol=1e-6, rtol=1e-5)


def test_the_stereo_image_stays(speech, noise):
    """A voice at one third left keeps its level ratio, and a silent channel stays silent."""
    mono = torch.from_numpy(speech + noise(1, speech.shape[1]) * 2)[:, :32_000]
    wave = torch.cat([mono, 0.5 * mono, 0 * mono])
    out = enhance_window(LogMmse(), wave, Request())
    torch.testing.assert_close(out[1], 0.5 * out[0], atol=1e-6, rtol=1e-4)
    assert not out[2].any()
    assert out[0].square().mean() < 0.6 * wave[0].square().mean()


def test_linked_channels_have_one_gain_and_separate_ones_their_own(plain, noise):
    wave = torch.from_numpy(noise(2, 20_000))
    wave[1] *= 0.1

    def gate(one: torch.Tensor, seed: int) -> torch.Tensor:
        return one * (
            one.square().mean() > 1e-3
        )  # hears the louder channel, and the mean, but not the quieter

    linked = enhance_window(plain(gate), wave, Request())
    torch.testing.assert_close(linked, wave, atol=1e-5, rtol=1e-4)
    separate = enhance_window(plain(gate), wave, Request(channels="separate"))
    torch.testing.assert_close(separate[0], wave[0])
    assert not separate[1].any()


def test_channels_that_cancel_are_still_heard(half, noise):
    one = torch.from_numpy(noise(1, 20_000))
    out = enhance_window(half, torch.cat([one, -one]), Request())
    torch.testing.assert_close(out, 0.5 * torch.cat([one, -one]), atol=1e-6, rtol=1e-4)


def test_a_linked_gain_never_makes_a_bin_louder(plain, noise):
    louder = plain(lambda wave, seed: 3 * wave)
    wave = torch.from_numpy(noise(2, 9_000))
    torch.testing.assert_close(enhance_window(louder, wave, Request()), wave, atol=1e-5, rtol=1e-4)


def test_nearly_equal_channels_keep_what_the_enhancer_made(plain, noise):
    """With differences 40 dB down, the answer itself is heard, in its own phase."""
    both = (
        torch.from_numpy(noise(1, 20_000)).expand(2, -1) + torch.from_numpy(noise(2, 20_000, seed=1)) * 0.01
    )
    shifted = plain(lambda wave, seed: wave.roll(40, dims=-1))
    out = enhance_window(shifted, both, Request())
    expected = both.mean(dim=0).roll(40)
    error = (out - expected).square().mean() / expected.square().mean()
    assert 10 * torch.log10(error) < -35


def test_silence_does_not_reach_the_enhancer_and_stays(seeded):
    assert not all_of(seeded, torch.zeros(2, 10 * RATE_HZ)).any()
    assert seeded.seeds == []


@pytest.mark.parametrize("level", [1e-38, 1e-20, 1e25, 1e37])
def test_extreme_levels_reach_the_enhancer_as_usual_ones(level, plain, noise):
    seen = []

    def see(wave: torch.Tensor, seed: int) -> torch.Tensor:
        seen.append(float(wave.abs().max()))
        return 0.5 * wave

    wave = torch.from_numpy(noise(1, 4_000)) * level
    out = enhance_window(plain(see), wave, Request())
    torch.testing.assert_close(out, 0.5 * wave, atol=0, rtol=1e-5)
    assert 0.49 < seen[0] < 1.01


def test_usual_levels_reach_the_enhancer_as_they_are(plain):
    seen = []
    enhancer = plain(lambda wave, seed: seen.append(wave.clone()) or wave)
    wave = torch.full((1, 100), 0.001)
    enhance_window(enhancer, wave, Request())
    assert torch.equal(seen[0], wave)


def test_an_answer_that_is_not_finite_is_an_error(plain):
    broken = plain(lambda wave, seed: wave / 0 * 0)
    with pytest.raises(AudioError, match="not finite"):
        enhance_window(broken, torch.ones(1, 100), Request())
