"""Draws of a broken proposal end, and say so."""

from __future__ import annotations

import torch

from auralign.policy.gamma import standard_gamma


def test_a_shape_that_is_nan_draws_nan_and_leaves_the_others_alone():
    shape = torch.tensor([[2.0, float("nan"), 5.0]])
    drawn = standard_gamma(shape, 4, torch.Generator().manual_seed(0), "independent")
    assert bool(drawn[..., 1].isnan().all())
    assert bool(drawn[..., [0, 2]].isfinite().all())
