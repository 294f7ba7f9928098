r"""BSS Eval 3 and 4 (SDR, SIR, SAR) by one exact float64 solve per item.

With :math:`P_j` the projection on all delays 0…L−1 of reference *j* and :math:`P` the one on all references,

.. math::
    SDR = \frac{\|P_j\hat s\|^2}{\|\hat s - P_j\hat s\|^2},\quad
    SIR = \frac{\|P_j\hat s\|^2}{\|P\hat s - P_j\hat s\|^2},\quad
    SAR = \frac{\|P\hat s\|^2}{\|\hat s - P\hat s\|^2}.

Signals of unit norm turn these into coherences :math:`c_j = \|P_j\hat s\|^2`, :math:`c = \|P\hat s\|^2`.
With the Gram matrix :math:`G = LL^T` of the delayed references and the correlations :math:`b`, a coherence
is :math:`\|L^{-1}b\|^2`: no filter and no filtering is needed. Only where 1 − c would lose its digits
(ratios above 40 dB) the error is computed from the filters themselves. Zeros follow every signal, as in the
MATLAB toolbox and mir_eval, so padding with zeros changes nothing.

Sources: Vincent, Gribonval, Févotte 2006; Stöter, Liutkus, Ito 2018 (v4); coherence form of Scheibler 2022
(arXiv:2110.06440).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from auralign.errors import UsageError
from auralign.metrics.contract import (
    CLAMP_DB,
    ONE_SAMPLE,
    SILENT_ESTIMATE,
    SILENT_REFERENCE,
    is_silent,
    require_same_shape,
)
from auralign.metrics.sdr import snr

FILTER_SAMPLES = 512
"""Length of the forgiven distortion filter in every published table."""

_CHUNK = 16
"""Blocks transformed at a time: keeps the working set in cache and memory constant at any length."""

_CANCELLATION = 1e-4
"""Below this share of the energy a difference of coherences is replaced by the error itself."""

_LOADING = (1e-13, 1e-12, 1e-11, 1e-10)
"""Diagonal loading, tried in order, when the Gram matrix is singular in float64."""

ONE_SOURCE = "one source: there is no interference"
TOO_SHORT = "too short: the delayed references span every signal"


@dataclass(frozen=True)
class BssEval:
    """The three ratios of every reference, in dB, and which estimate was scored against it."""

    sdr_db: Float64[Tensor, " source"]
    """Signal to distortion (everything that is not the target)."""
    sir_db: Float64[Tensor, " source"]
    """Signal to interference (the other references)."""
    sar_db: Float64[Tensor, " source"]
    """Signal to artefacts (what no reference explains)."""
    permutation: tuple[int, ...]
    """``permutation[j]`` is the estimate scored against reference j."""
    reasons: tuple[str, ...]
    """Per reference: why a ratio is nan, or what was done to get it; empty when there is nothing to say."""


@dataclass(frozen=True)
class BssTarget:
    """The three ratios of many estimates of one target, in dB."""

    sdr_db: Float64[Tensor, " est"]
    """Signal to distortion."""
    sir_db: Float64[Tensor, " est"]
    """Signal to interference."""
    sar_db: Float64[Tensor, " est"]
    """Signal to artefacts."""
    reasons: tuple[str, ...]
    """Per estimate: why a ratio is nan, or what was done to get it."""


@dataclass(frozen=True)
class _Shares:
    """Energies of the parts of every estimate (rows) for every reference (columns), estimate of unit norm."""

    target: Float64[Tensor, "est ref"]
    interference: Float64[Tensor, "est ref"]
    explained: Float64[Tensor, " est"]
    artefact: Float64[Tensor, " est"]


def bss_eval_v3(
    *,
    est: Float[Tensor, "source time"],
    ref: Float[Tensor, "source time"],
    filter_samples: int = FILTER_SAMPLES,
    permutation: bool = False,
) -> BssEval:
    """BSS Eval 3 "sources": SDR, SIR and SAR that forgive any filter of ``filter_samples`` taps.

    The number of mir_eval's ``bss_eval_sources``, to 1e-9 dB. Invariant to gain and sign of each estimate.

    Args:
        est: Estimates.
        ref: References, as many as estimates.
        filter_samples: Taps of the forgiven filter.
        permutation: Match estimates to references by the best mean SIR; otherwise in order.

    >>> time = torch.arange(2000.0)
    >>> ref = torch.stack([torch.sin(0.1 * time**1.1), torch.sin(0.2 * time**1.2)])
    >>> est = ref + 0.1 * ref.flip(0)
    >>> bss_eval_v3(est=est, ref=ref, filter_samples=32).sdr_db.round().tolist()
    [20.0, 20.0]
    """
    require_same_shape(est=est, ref=ref)
    if filter_samples < 1:
        raise UsageError(
            f"filter_samples is {filter_samples}", where="bss_eval", hint="use 512, as the papers do"
        )
    n_sources = ref.shape[0]
    grid, refusals, said = _grid(est.detach().double(), ref.detach().double(), filter_samples)
    order = _best_order(grid[1]) if permutation else tuple(range(n_sources))
    picked = grid[:, list(order), list(range(n_sources))]
    reasons = tuple(refusals[1][j] or refusals[0][order[j]] or said for j in range(n_sources))
    return BssEval(picked[0], picked[1], picked[2], order, reasons)


def bss_eval_target(
    *,
    est: Float[Tensor, "est time"],
    ref: Float[Tensor, "source time"],
    filter_samples: int = FILTER_SAMPLES,
) -> BssTarget:
    """Version 3 for any number of estimates of the first reference, with one solve for all of them.

    What :func:`bss_eval_v3` gives for the first source does not depend on the other estimates, so systems that
    answered for the same mixture share the Gram matrix and its factors.

    Args:
        est: Estimates of the target.
        ref: References; the first is the target.
        filter_samples: Taps of the forgiven filter.
    """
    require_same_shape(est=est[0], ref=ref[0])
    grid, refusals, said = _grid(est.detach().double(), ref.detach().double(), filter_samples)
    reasons = tuple(refusals[1][0] or refused or said for refused in refusals[0])
    return BssTarget(grid[0, :, 0], grid[1, :, 0], grid[2, :, 0], reasons)


def bss_eval_v4(
    *,
    est: Float[Tensor, "source time"],
    ref: Float[Tensor, "source time"],
    filter_samples: int = FILTER_SAMPLES,
    permutation: bool = False,
) -> BssEval:
    """BSS Eval 4 "images", one channel, whole file: SDR is the plain SNR, SIR and SAR are those of version 3.

    The number of museval's ``bss_eval`` with an infinite window (CLIPSep, OmniSep, MARS-Sep). Arguments as in
    :func:`bss_eval_v3`.

    >>> ref = torch.sin(torch.arange(2000.0))[None]
    >>> round(float(bss_eval_v4(est=0.5 * ref, ref=ref, filter_samples=4).sdr_db), 2)
    6.02
    """
    filtered = bss_eval_v3(est=est, ref=ref, filter_samples=filter_samples, permutation=permutation)
    plain = snr(est=est.detach()[list(filtered.permutation)], ref=ref.detach())
    return BssEval(plain, filtered.sir_db, filtered.sar_db, filtered.permutation, filtered.reasons)


def _grid(
    est: Float64[Tensor, "est time"], ref: Float64[Tensor, "ref time"], taps: int
) -> tuple[Float64[Tensor, "3 est ref"], tuple[list[str], list[str]], str]:
    """Ratios of every estimate for every reference, what had to be left out and why, and what holds for all."""
    refusals = _refusals(est=est, ref=ref)
    est_heard = [i for i, why in enumerate(refusals[0]) if not why]
    ref_heard = [j for j, why in enumerate(refusals[1]) if not why]
    grid = torch.full((3, len(est), len(ref)), torch.nan, dtype=torch.float64)
    note = ""
    if est_heard and ref_heard:
        shares, note = _energy_shares(est[est_heard], ref[ref_heard], taps)
        grid[:, torch.tensor(est_heard)[:, None], torch.tensor(ref_heard)] = _ratios(shares)
    blind = _blind_spots(len(ref_heard), ref.shape[-1], taps)
    if blind:
        grid[1] = torch.nan
    if blind == TOO_SHORT:
        grid[2] = torch.nan
    return grid, refusals, blind or note


def _refusals(*, est: Tensor, ref: Tensor) -> tuple[list[str], list[str]]:
    """Per estimate and per reference: why it cannot take part, or an empty string."""

    def why(sound: Tensor, name: str, silent: str) -> str:
        if not bool(torch.isfinite(sound).all()):
            return f"{name} has NaN or infinite samples"
        if sound.shape[-1] < 2:
            return ONE_SAMPLE
        return silent if is_silent(sound) else ""

    return (
        [why(sound, "estimate", SILENT_ESTIMATE) for sound in est],
        [why(sound, "reference", SILENT_REFERENCE) for sound in ref],
    )


def _blind_spots(n_heard: int, n_time: int, taps: int) -> str:
    """Why SIR (and for a short sound SAR) has no meaning whatever the samples are."""
    if n_heard * taps >= n_time + taps - 1:
        return TOO_SHORT
    return ONE_SOURCE if n_heard < 2 else ""


def _ratios(shares: _Shares) -> Float64[Tensor, "3 est ref"]:
    """SDR, SIR and SAR in dB, cut to ±150 dB."""
    distortion = shares.interference + shares.artefact[:, None]
    sar = (shares.explained / shares.artefact)[:, None].expand_as(shares.target)
    ratios = torch.stack([shares.target / distortion, shares.target / shares.interference, sar])
    return (10 * torch.log10(ratios)).clamp(-CLAMP_DB, CLAMP_DB)


def _best_order(sir: Float64[Tensor, "est ref"]) -> tuple[int, ...]:
    """The assignment with the best mean SIR; pairs without a SIR count nothing."""
    table = torch.nan_to_num(sir, nan=0.0).tolist()
    n_sources = len(table)
    return max(
        itertools.permutations(range(n_sources)),
        key=lambda order: sum(table[order[j]][j] for j in range(n_sources)),
    )


def _energy_shares(est: Tensor, ref: Tensor, taps: int) -> tuple[_Shares, str]:
    """Split every estimate into target, interference and artefacts by one factor of all references."""
    est, ref = (sound / torch.linalg.vector_norm(sound, dim=-1, keepdim=True) for sound in (est, ref))
    n_ref, n_est = ref.shape[0], est.shape[0]
    lags = _correlate(torch.cat([ref, est]), ref, taps)
    gram = _gram(lags[:n_ref])
    right = lags[n_ref:].reshape(n_est, n_ref * taps).mT
    factor, note = _cholesky(gram)
    whitened = torch.linalg.solve_triangular(factor, right, upper=False)
    explained = whitened.square().sum(0)
    target = torch.empty(n_est, n_ref, dtype=torch.float64)
    interference = torch.empty_like(target)
    filters = None
    for j in range(n_ref):
        block = slice(j * taps, (j + 1) * taps)
        own = factor[block, block] if j == 0 else _cholesky(gram[block, block])[0]
        own_whitened = torch.linalg.solve_triangular(own, right[block], upper=False)
        target[:, j] = own_whitened.square().sum(0)
        interference[:, j] = explained - target[:, j]
        if bool((interference[:, j] < _CANCELLATION * target[:, j]).any()):
            filters = _backward(factor, whitened) if filters is None else filters
            difference = filters.clone()
            difference[block] -= _backward(own, own_whitened)
            interference[:, j] = (factor.mT @ difference).square().sum(0)
    artefact = 1 - explained
    if bool((artefact < _CANCELLATION).any()):
        filters = _backward(factor, whitened) if filters is None else filters
        artefact = _artefact_energy(est, ref, filters.mT.reshape(n_est, n_ref, taps))
    return _Shares(target, interference, explained, artefact), note


def _backward(factor: Tensor, whitened: Tensor) -> Tensor:
    filters: Tensor = torch.linalg.solve_triangular(factor.mT, whitened, upper=True)
    return filters


def _cholesky(gram: Float64[Tensor, "row row"]) -> tuple[Tensor, str]:
    """Lower factor, with the smallest loading that makes the matrix positive definite and a note of it."""
    factor, failed = torch.linalg.cholesky_ex(gram)
    if not failed:
        return factor, ""
    for loading in _LOADING:
        factor, failed = torch.linalg.cholesky_ex(gram + loading * torch.eye(len(gram), dtype=torch.float64))
        if not failed:
            break
    return factor, f"references are linearly dependent: solved with diagonal loading {loading:.0e}"


def _block_samples(taps: int) -> int:
    """FFT length: the power of two near eight filters, where a block's cost per sample is lowest."""
    return max(2048, 1 << (8 * taps - 1).bit_length())


def _delayed_blocks(
    sound: Float64[Tensor, "source time"], taps: int, n_fft: int
) -> Float64[Tensor, "source block fft"]:
    """View of overlapping blocks, each with the ``taps - 1`` samples before it."""
    hop = n_fft - taps + 1
    n_blocks = -(-sound.shape[-1] // hop)
    padded = torch.nn.functional.pad(sound, (taps - 1, n_blocks * hop - sound.shape[-1]))
    return padded.unfold(-1, n_fft, hop)


def _correlate(
    left: Float64[Tensor, "left time"], right: Float64[Tensor, "right time"], taps: int
) -> Float64[Tensor, "left right taps"]:
    r"""Correlations :math:`r_{ij}(k) = \sum_t x_i(t)\, y_j(t - k)` for k = 0…taps−1.

    Blocks are summed in the frequency domain: two short FFTs a block and one inverse FFT in all.
    """
    n_fft = _block_samples(taps)
    hop = n_fft - taps + 1
    delayed = _delayed_blocks(right, taps, n_fft)
    n_blocks = delayed.shape[1]
    plain = torch.nn.functional.pad(left, (0, n_blocks * hop - left.shape[-1])).reshape(-1, n_blocks, hop)
    spectrum = torch.zeros(len(left), len(right), n_fft // 2 + 1, dtype=torch.complex128)
    for start in range(0, n_blocks, _CHUNK):
        x = torch.fft.rfft(plain[:, start : start + _CHUNK], n=n_fft).conj_physical_()
        y = torch.fft.rfft(delayed[:, start : start + _CHUNK])
        for i in range(len(left)):
            spectrum[i] += (x[i] * y).sum(1)
    lags: Tensor = torch.fft.irfft(spectrum, n=n_fft)[..., :taps].flip(-1)
    return lags


def _gram(lags: Float64[Tensor, "ref ref taps"]) -> Float64[Tensor, "row row"]:
    """Gram matrix of all delayed references, lower half: Toeplitz blocks ``G_ij[a, b] = r_ij(b - a)``."""
    n_ref, _, taps = lags.shape
    gram = np.zeros((n_ref * taps, n_ref * taps))
    r = lags.numpy()
    for i in range(n_ref):
        for j in range(i + 1):
            line = np.concatenate([r[j, i, :0:-1], r[i, j]])
            windows = np.lib.stride_tricks.sliding_window_view(line, taps)
            gram[i * taps : (i + 1) * taps, j * taps : (j + 1) * taps] = windows[::-1]
    return torch.from_numpy(gram)


def _artefact_energy(
    est: Float64[Tensor, "est time"],
    ref: Float64[Tensor, "ref time"],
    filters: Float64[Tensor, "est ref taps"],
) -> Float64[Tensor, " est"]:
    """Energy of what filtering the references does not explain, computed sample by sample."""
    taps = filters.shape[-1]
    n_fft = _block_samples(taps)
    hop = n_fft - taps + 1
    est, ref = (torch.nn.functional.pad(sound, (0, taps - 1)) for sound in (est, ref))
    delayed = _delayed_blocks(ref, taps, n_fft)
    n_blocks = delayed.shape[1]
    wanted = torch.nn.functional.pad(est, (0, n_blocks * hop - est.shape[-1])).reshape(-1, n_blocks, hop)
    response = torch.fft.rfft(filters, n=n_fft)
    energy = torch.zeros(len(est), dtype=torch.float64)
    for start in range(0, n_blocks, _CHUNK):
        blocks = torch.fft.rfft(delayed[:, start : start + _CHUNK])
        for i in range(len(est)):
            explained = torch.fft.irfft((response[i][:, None] * blocks).sum(0), n=n_fft)[:, taps - 1 :]
            energy[i] += (wanted[i, start : start + _CHUNK] - explained).square().sum()
    return energy
