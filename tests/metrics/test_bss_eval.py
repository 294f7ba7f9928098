from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import warnings

import fast_bss_eval
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from auralign.errors import UsageError
from auralign.metrics.bss_eval import ONE_SOURCE, TOO_SHORT, BssEval, bss_eval_v3, bss_eval_v4
from auralign.metrics.contract import CLAMP_DB
from auralign.metrics.sdr import snr


def scene(sources: int, time: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Coloured references and estimates of them with leakage, noise and a filter."""
    rng = np.random.default_rng(seed)
    ref = rng.standard_normal((sources, time))
    ref[:, 1:] += 0.7 * ref[:, :-1]
    est = ref + 0.2 * rng.standard_normal((sources, sources)) @ ref + 0.1 * rng.standard_normal(ref.shape)
    est[:, 3:] += 0.4 * ref[:, :-3]
    return torch.from_numpy(est), torch.from_numpy(ref)


def ratios(result: BssEval) -> np.ndarray:
    return torch.stack([result.sdr_db, result.sir_db, result.sar_db]).numpy()


def by_mir_eval(est: torch.Tensor, ref: torch.Tensor, permutation: bool = False) -> tuple[np.ndarray, tuple]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mir_eval.separation import bss_eval_sources

        *three, order = bss_eval_sources(ref.numpy(), est.numpy(), compute_permutation=permutation)
    return np.stack(three), tuple(int(i) for i in order)


def by_projection(est: np.ndarray, ref: np.ndarray, j: int, taps: int) -> tuple[float, float, float]:
    """The three ratios from explicit matrices of delayed references and least squares."""

    def delayed(sounds: np.ndarray) -> np.ndarray:
        length = sounds.shape[1] + taps - 1
        columns = np.zeros((length, len(sounds) * taps))
        for i, sound in enumerate(sounds):
            for k in range(taps):
                columns[k : k + len(sound), i * taps + k] = sound
        return columns

    padded = np.pad(est, (0, taps - 1))
    own = delayed(ref[j : j + 1])
    every = delayed(ref)
    target = own @ np.linalg.lstsq(own, padded, rcond=None)[0]
    explained = every @ np.linalg.lstsq(every, padded, rcond=None)[0]
    energies = [
        np.square(x).sum()
        for x in (target, padded - target, explained - target, explained, padded - explained)
    ]
    target_e, distortion, interference, explained_e, artefact = (float(e) for e in energies)
    return tuple(
        10 * math.log10(r) for r in (target_e / distortion, target_e / interference, explained_e / artefact)
    )


@pytest.mark.parametrize(("sources", "time"), [(2, 3000), (2, 8000), (3, 8000), (4, 8000), (2, 44100)])
def test_version_3_is_the_number_of_mir_eval(sources, time):
    est, ref = scene(sources, time)
    theirs, _ = by_mir_eval(est, ref)
    assert np.abs(ratios(bss_eval_v3(est=est, ref=ref)) - theirs).max() < 1e-9


def test_version_3_is_the_number_of_mir_eval_at_80_db():
    _, ref = scene(2, 16000)
    rng = torch.Generator().manual_seed(0)
    est = ref + 1e-4 * ref.flip(0) + 1e-4 * torch.randn(ref.shape, generator=rng, dtype=torch.float64)
    theirs, _ = by_mir_eval(est, ref)
    ours = ratios(bss_eval_v3(est=est, ref=ref))
    assert ours.min() > 70
    assert np.abs(ours - theirs).max() < 1e-9


def test_version_3_is_the_number_of_fast_bss_eval_on_float32_sounds():
    est, ref = (sound.float() for sound in scene(3, 12000))
    theirs = fast_bss_eval.bss_eval_sources(ref.double(), est.double(), compute_permutation=False)
    torch.testing.assert_close(bss_eval_v3(est=est, ref=ref).sdr_db, theirs[0].double(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("taps", [1, 2, 7, 32])
def test_version_3_equals_explicit_projections(taps):
    est, ref = scene(3, 400, seed=taps)
    result = ratios(bss_eval_v3(est=est, ref=ref, filter_samples=taps))
    for j in range(3):
        expected = by_projection(est[j].numpy(), ref.numpy(), j, taps)
        assert result[:, j] == pytest.approx(expected, abs=1e-9)


def test_permutation_finds_the_shuffle_and_equals_mir_eval():
    est, ref = scene(3, 6000)
    shuffle = [2, 0, 1]
    ours = bss_eval_v3(est=est[shuffle], ref=ref, permutation=True)
    theirs, order = by_mir_eval(est[shuffle], ref, permutation=True)
    assert ours.permutation == order == (1, 2, 0)
    assert np.abs(ratios(ours) - theirs).max() < 1e-9
    in_order = bss_eval_v3(est=est[shuffle][[1, 2, 0]], ref=ref)
    np.testing.assert_allclose(ratios(ours), ratios(in_order), atol=1e-10)


def load_museval():
    """museval's metric module alone: its package asks for ffmpeg at import."""
    path = next(f for f in importlib.metadata.files("museval") if str(f) == "museval/metrics.py").locate()
    spec = importlib.util.spec_from_file_location("museval_metrics", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(importlib.util.find_spec("museval") is None, reason="museval is not installed")
def test_version_4_is_the_number_of_museval():
    est, ref = scene(2, 6000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sdr, _, sir, sar, _ = load_museval().bss_eval(
            ref.numpy()[..., None],
            est.numpy()[..., None],
            window=np.inf,
            hop=np.inf,
            compute_permutation=False,
        )
    theirs = np.stack([sdr[:, 0], sir[:, 0], sar[:, 0]])
    assert np.abs(ratios(bss_eval_v4(est=est, ref=ref)) - theirs).max() < 1e-9


def test_version_4_sdr_is_snr_and_the_rest_is_version_3():
    est, ref = scene(2, 5000)
    four, three = bss_eval_v4(est=est, ref=ref), bss_eval_v3(est=est, ref=ref)
    assert four.sdr_db.tolist() == snr(est=est, ref=ref).tolist()
    assert four.sir_db.tolist() == three.sir_db.tolist()
    assert four.sar_db.tolist() == three.sar_db.tolist()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), sources=st.integers(2, 4), time=st.integers(300, 3000))
def test_ratios_satisfy_the_identity_between_them(seed, sources, time):
    """1/SDR = 1/SIR + (1 + 1/SIR)/SAR on a linear scale."""
    est, ref = scene(sources, time, seed)
    sdr, sir, sar = 10 ** (ratios(bss_eval_v3(est=est, ref=ref, filter_samples=16)) / 10)
    np.testing.assert_allclose(1 / sdr, 1 / sir + (1 + 1 / sir) / sar, rtol=1e-9)


@settings(max_examples=15, deadline=None)
@given(gain=st.floats(1e-3, 1e3) | st.floats(-1e3, -1e-3), padding=st.integers(0, 5000))
def test_version_3_ignores_gain_sign_and_trailing_zeros(gain, padding):
    est, ref = scene(2, 2000)
    before = ratios(bss_eval_v3(est=est, ref=ref, filter_samples=16))
    est, ref = (torch.nn.functional.pad(sound, (0, padding)) for sound in (gain * est, ref))
    np.testing.assert_allclose(ratios(bss_eval_v3(est=est, ref=ref, filter_samples=16)), before, atol=1e-8)


def test_a_filter_that_fits_is_forgiven_and_one_tap_more_is_not():
    _, ref = scene(2, 4000)
    ref[:, 3000:] = 0
    within, beyond = (torch.roll(ref, delay, dims=-1) for delay in (511, 512))
    assert bss_eval_v3(est=within, ref=ref).sdr_db.min() == CLAMP_DB
    assert bss_eval_v3(est=beyond, ref=ref).sdr_db.max() < 10


def test_a_mixture_of_the_references_has_no_artefacts():
    _, ref = scene(2, 4000)
    result = bss_eval_v3(est=torch.stack([ref.sum(0), ref.sum(0)]), ref=ref)
    assert result.sar_db.tolist() == [CLAMP_DB, CLAMP_DB]
    assert result.reasons == ("", "")


def test_threads_do_not_change_the_result():
    est, ref = scene(2, 8000)
    before = torch.get_num_threads()
    alone = ratios(bss_eval_v3(est=est, ref=ref))
    try:
        torch.set_num_threads(2)
        np.testing.assert_allclose(ratios(bss_eval_v3(est=est, ref=ref)), alone, atol=1e-9)
    finally:
        torch.set_num_threads(before)


def test_a_silent_reference_is_nan_and_the_others_are_scored_without_it():
    est, ref = scene(3, 4000)
    with_silence = bss_eval_v3(est=est, ref=ref * torch.tensor([1.0, 0.0, 1.0])[:, None])
    without = bss_eval_v3(est=est[[0, 2]], ref=ref[[0, 2]])
    assert with_silence.reasons == ("", "silent reference", "")
    assert torch.isnan(with_silence.sdr_db).tolist() == [False, True, False]
    np.testing.assert_allclose(ratios(with_silence)[:, [0, 2]], ratios(without), atol=1e-10)


@pytest.mark.parametrize(
    ("value", "reason"), [(0.0, "silent estimate"), (math.nan, "estimate has NaN or infinite samples")]
)
def test_a_sick_estimate_is_nan_and_its_sibling_is_scored(value, reason):
    est, ref = scene(2, 3000)
    expected = ratios(bss_eval_v3(est=est, ref=ref))[:, 0]
    est[1] = value
    result = bss_eval_v3(est=est, ref=ref)
    assert result.reasons == ("", reason)
    np.testing.assert_allclose(ratios(result)[:, 0], expected, atol=1e-10)
    assert np.isnan(ratios(result)[:, 1]).all()


def test_one_source_has_sdr_and_sar_but_no_sir():
    est, ref = scene(1, 3000)
    result = bss_eval_v3(est=est, ref=ref)
    assert result.reasons == (ONE_SOURCE,)
    assert result.sdr_db.tolist() == pytest.approx(result.sar_db.tolist(), abs=1e-9)
    assert torch.isnan(result.sir_db).all()


def test_a_sound_shorter_than_its_filters_says_so():
    est, ref = scene(2, 400)
    result = bss_eval_v3(est=est, ref=ref)
    assert result.reasons == (TOO_SHORT, TOO_SHORT)
    assert torch.isfinite(result.sdr_db).all()
    assert torch.isnan(result.sir_db).all()
    assert torch.isnan(result.sar_db).all()
    assert torch.isnan(bss_eval_v3(est=est[:, :1], ref=ref[:, :1]).sdr_db).all()


def test_two_identical_references_are_solved_with_loading_and_say_so():
    est, ref = scene(2, 3000)
    ref[1] = ref[0]
    result = bss_eval_v3(est=est, ref=ref)
    assert all("linearly dependent" in reason for reason in result.reasons)
    alone = bss_eval_v3(est=est[:1], ref=ref[:1])
    assert float(result.sdr_db[0]) == pytest.approx(float(alone.sdr_db[0]), abs=1e-6)
    assert float(result.sir_db[0]) > 100


def test_pure_tones_are_scored_although_their_gram_matrix_is_singular():
    time = torch.arange(8000) / 8000
    ref = torch.stack([torch.sin(2 * math.pi * f * time) for f in (440, 523)]).double()
    generator = torch.Generator().manual_seed(0)
    est = ref + 0.1 * ref.flip(0) + 0.01 * torch.randn(2, 8000, generator=generator, dtype=torch.float64)
    theirs, _ = by_mir_eval(est, ref)
    assert np.abs(ratios(bss_eval_v3(est=est, ref=ref)) - theirs).max() < 1e-5


def test_two_silences_and_nothing_else_score_nothing():
    result = bss_eval_v3(est=torch.zeros(2, 2000), ref=torch.zeros(2, 2000))
    assert result.reasons == ("silent reference", "silent reference")
    assert np.isnan(ratios(result)).all()


def test_a_filter_without_taps_is_a_usage_error():
    est, ref = scene(2, 100)
    with pytest.raises(UsageError, match="use 512"):
        bss_eval_v3(est=est, ref=ref, filter_samples=0)
