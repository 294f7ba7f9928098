from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from auralign.models.query_mask_net import MaskOutput, QueryMaskNet, yamnet_taps

TINY = {"widths": (8, 12, 16, 20), "blocks": (1, 1, 1, 1), "fine": 4, "hidden": 8, "query_dim": 6}
BANDS, FRAMES = 32, 48


@pytest.fixture
def net() -> QueryMaskNet:
    torch.manual_seed(0)
    return QueryMaskNet(**TINY)


def _inputs(batch: int = 2, queries: int = 3) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    make = torch.Generator().manual_seed(1)
    maps = [
        torch.randn(batch, 256, 8, 10, generator=make),
        torch.randn(batch, 512, 4, 5, generator=make),
        torch.randn(batch, 1024, 2, 3, generator=make),
    ]
    query = F.normalize(torch.randn(batch, queries, 6, generator=make), dim=-1)
    return torch.randn(batch, 1, BANDS, FRAMES, generator=make), maps, query


def test_one_mask_per_query_at_the_inputs_resolution_and_one_presence_logit(net):
    out = net.eval()(*_inputs())
    assert out.logits.shape == (2, 3, BANDS, FRAMES)
    assert out.presence.shape == (2, 3)
    assert out.mask.min() >= 0
    assert out.mask.max() <= 1


def test_one_trunk_pass_for_many_queries_equals_one_pass_per_query(net):
    log_energy, maps, query = _inputs()
    net.eval()
    together = net(log_energy, maps, query)
    for k in range(3):
        alone = net(log_energy, maps, query[:, k : k + 1])
        torch.testing.assert_close(together.logits[:, k : k + 1], alone.logits, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(together.presence[:, k : k + 1], alone.presence, atol=1e-6, rtol=1e-5)


def test_queries_of_one_mixture_do_not_see_those_of_another(net):
    log_energy, maps, query = _inputs()
    net.eval()
    changed = query.clone()
    changed[1] = -changed[1]
    before, after = net(log_energy, maps, query), net(log_energy, maps, changed)
    assert torch.equal(before.logits[0], after.logits[0])
    assert not torch.equal(before.logits[1], after.logits[1])


def test_logits_are_the_local_filter_times_the_fine_features_plus_its_bias(net):
    log_energy, maps, query = _inputs(batch=1, queries=1)
    net.eval()
    fine, coarse = net.features(log_energy, maps)
    assert fine.shape == (1, 4, BANDS, FRAMES)
    assert coarse.shape == (1, 12, BANDS // 4, FRAMES // 4)
    filters, _ = net.head(coarse, query)
    filters = F.interpolate(filters, size=(BANDS, FRAMES), mode="bilinear", align_corners=False)
    expected = filters[:, 4:5].clone()
    for c in range(4):
        expected = expected + filters[:, c : c + 1] * fine[:, c : c + 1]
    torch.testing.assert_close(net.read(fine, coarse, query).logits, expected, atol=1e-6, rtol=1e-5)


def test_gradient_reaches_every_parameter(net):
    # the last norm of a residual block starts at zero and hides the block behind it: start elsewhere
    for name, parameter in net.named_parameters():
        if name.endswith("second_norm.weight"):
            torch.nn.init.constant_(parameter, 0.5)
    out = net.double()(
        *(x.double() if isinstance(x, torch.Tensor) else [m.double() for m in x] for x in _inputs())
    )
    assert out.logits.dtype == torch.float32, "masks leave in float32 whatever the arithmetic"
    (out.logits.square().sum() + out.presence.square().sum()).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_the_trunk_listens_to_yamnets_maps(net):
    log_energy, maps, query = _inputs()
    net.eval()
    before = net(log_energy, maps, query).logits
    for n in range(3):
        other = [m + (1.0 if n == i else 0.0) for i, m in enumerate(maps)]
        assert not torch.equal(net(log_energy, other, query).logits, before), n


def test_a_residual_block_starts_as_the_identity_on_positive_features(net):
    block = net.trunk.enc[0][0].eval()
    x = torch.rand(1, 8, 4, 4)
    assert torch.equal(block(x), x)


def test_mask_is_the_logistic_of_the_logit():
    out = MaskOutput(torch.tensor([[[[0.0, 100.0, -100.0]]]]), torch.zeros(1, 1))
    assert out.mask.flatten().tolist() == pytest.approx([0.5, 1.0, 0.0])


def test_taps_are_the_maps_at_strides_8_16_and_32_with_mel_before_frame():
    maps = [torch.zeros(1, n + 1, 3, 2) for n in range(14)]
    assert [tuple(t.shape) for t in yamnet_taps(maps)] == [(1, 6, 2, 3), (1, 12, 2, 3), (1, 14, 2, 3)]
