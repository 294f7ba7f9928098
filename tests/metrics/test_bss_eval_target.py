from __future__ import annotations

import pytest
import torch

from auralign.metrics.bss_eval import bss_eval_target, bss_eval_v3
from auralign.metrics.contract import SILENT_ESTIMATE, SILENT_REFERENCE


@pytest.fixture
def sounds() -> tuple[torch.Tensor, torch.Tensor]:
    """Five estimates of the first of two references, better and better."""
    generator = torch.Generator().manual_seed(0)
    ref = torch.randn(2, 3000, generator=generator)
    leak = torch.tensor([1.0, 0.5, 0.2, 0.05, 0.0])
    noise = torch.randn(5, 3000, generator=generator)
    return ref[0] + leak[:, None] * ref[1] + 0.1 * leak[:, None] * noise, ref


def test_each_estimate_scores_as_alone(sounds):
    est, ref = sounds
    found = bss_eval_target(est=est, ref=ref, filter_samples=32)
    for n, one in enumerate(est):
        pair = torch.stack([one, ref.sum(0) - one])
        alone = bss_eval_v3(est=pair, ref=ref, filter_samples=32)
        mine = torch.stack([found.sdr_db[n], found.sir_db[n], found.sar_db[n]])
        theirs = torch.stack([alone.sdr_db[0], alone.sir_db[0], alone.sar_db[0]])
        torch.testing.assert_close(mine, theirs, atol=1e-9, rtol=0)
    assert found.sdr_db.diff().gt(0).all()


def test_a_silent_estimate_leaves_the_others_as_they_are(sounds):
    est, ref = sounds
    whole = bss_eval_target(est=est[:3], ref=ref, filter_samples=32)
    muted = bss_eval_target(est=torch.stack([est[0], 0 * est[1], est[2]]), ref=ref, filter_samples=32)
    assert muted.reasons == ("", SILENT_ESTIMATE, "")
    assert muted.sdr_db[1].isnan()
    torch.testing.assert_close(muted.sir_db[[0, 2]], whole.sir_db[[0, 2]], atol=1e-9, rtol=0)


def test_a_silent_target_has_no_ratio(sounds):
    est, ref = sounds
    found = bss_eval_target(est=est, ref=torch.stack([0 * ref[0], ref[1]]), filter_samples=32)
    assert found.sdr_db.isnan().all()
    assert set(found.reasons) == {SILENT_REFERENCE}
