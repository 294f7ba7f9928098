from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from auralign.errors import DataError
from auralign.runtime.checkpoint import (
    CheckpointStore,
    load_checkpoint,
    read_meta,
    save_checkpoint,
)
from auralign.runtime.seed import capture_rng, derive, restore_rng, seed_all


def _train(net, optimiser, generator, steps):
    """Steps that draw from every random source there is."""
    losses = []
    for _ in range(steps):
        x = torch.from_numpy(generator.standard_normal((4, 3))).float() + random.random()
        x = x + torch.randn(4, 3) * float(np.random.rand())
        loss = torch.nn.functional.dropout(net(x), 0.5).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def _fresh():
    seed_all(3)
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2))
    return net, torch.optim.AdamW(net.parameters(), lr=1e-2), np.random.default_rng(derive(3, "data"))


def test_resumed_training_equals_uninterrupted_training_bit_for_bit(tmp_path):
    net, optimiser, generator = _fresh()
    _train(net, optimiser, generator, 3)
    state = {
        "model": net.state_dict(),
        "optimiser": optimiser.state_dict(),
        "rng": capture_rng({"data": generator}),
        "position": {"epoch": 1, "index": 7},
    }
    save_checkpoint(tmp_path / "a.safetensors", state, {"step": 3})
    expected = _train(net, optimiser, generator, 5)

    other, other_optimiser, other_generator = _fresh()
    _train(other, other_optimiser, other_generator, 1)
    found = load_checkpoint(tmp_path / "a.safetensors")
    other.load_state_dict(found.state["model"])
    other_optimiser.load_state_dict(found.state["optimiser"])
    restore_rng(found.state["rng"], {"data": other_generator})
    assert _train(other, other_optimiser, other_generator, 5) == expected
    assert found.meta == {"step": 3}
    assert found.state["position"] == {"epoch": 1, "index": 7}
    for mine, its in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, its)


def test_a_tree_comes_back_with_its_types(tmp_path):
    shared = torch.arange(6.0)
    state = {
        "tuple": (1, (2.5, None), "x"),
        "int keys": {0: torch.tensor(3), 1: [True]},
        "array": np.array([[1, 2]], dtype=np.uint32),
        "views": [shared[:3], shared[3:], shared.reshape(2, 3).T],
        "half": torch.ones(2, dtype=torch.bfloat16),
        "empty": [{}, [], (), torch.zeros(0, 2)],
        "big": 2**100,
        "marked": {"__tensor__": "a text of the user"},
    }
    save_checkpoint(tmp_path / "c", state)
    back = load_checkpoint(tmp_path / "c").state
    assert list(back) == list(state)
    assert back["tuple"] == state["tuple"]
    assert back["int keys"][0].item() == 3
    assert back["int keys"][1] == [True]
    assert back["array"].dtype == np.uint32
    assert back["array"].tolist() == [[1, 2]]
    assert all(torch.equal(a, b) for a, b in zip(back["views"], state["views"], strict=True))
    assert back["half"].dtype == torch.bfloat16
    assert back["empty"][:3] == [{}, [], ()]
    assert back["empty"][3].shape == (0, 2)
    assert back["big"] == 2**100
    assert back["marked"] == {"__tensor__": "a text of the user"}


def test_what_only_pickle_could_hold_is_refused(tmp_path):
    with pytest.raises(DataError, match="state/f: a checkpoint cannot hold function"):
        save_checkpoint(tmp_path / "c", {"f": lambda: 0})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", None])
def test_damaged_and_missing_files_say_so(tmp_path, content):
    path = tmp_path / "c.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"c\.safetensors"):
        load_checkpoint(path)


def test_foreign_safetensors_are_not_taken_for_checkpoints(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "f.safetensors")
    with pytest.raises(DataError, match="not an auralign checkpoint"):
        load_checkpoint(tmp_path / "f.safetensors")


def test_the_store_keeps_the_newest_and_the_best(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints", keep_last=2, common_meta={"config_toml": "a = 1"})
    assert store.latest() is None
    with pytest.raises(DataError, match="no checkpoint"):
        store.load_latest()
    for step, score in [(1, 0.5), (2, 3.0), (3, None), (4, float("nan")), (5, 1.0)]:
        store.save(step, {"step": torch.tensor(step)}, score=score)
    assert store.steps() == [4, 5]
    assert store.load_latest().state["step"].item() == 5
    best = store.best()
    assert best is not None
    assert load_checkpoint(best).state["step"].item() == 2
    assert read_meta(best) == {"config_toml": "a = 1", "step": 2, "score": 3.0}
    assert CheckpointStore(tmp_path / "checkpoints").best_score() == 3.0
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_truncated_newest_checkpoint_names_the_one_before(tmp_path):
    store = CheckpointStore(tmp_path)
    for step in (1, 2):
        newest = store.save(step, {"a": torch.zeros(100)})
    newest.write_bytes(newest.read_bytes()[:-50])
    with pytest.raises(DataError, match="go on from step 1"):
        store.load_latest()


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path):
    save_checkpoint(tmp_path / "c", {"a": 1})
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path / "c", {"a": 2}, {"meta": object()})
    assert load_checkpoint(tmp_path / "c").state == {"a": 1}


def test_torch_generators_are_captured_too():
    generator = torch.Generator().manual_seed(5)
    state = capture_rng({"mix": generator})
    first = torch.rand(4, generator=generator)
    restore_rng(state, {"mix": generator, "unknown": torch.Generator()})
    assert torch.equal(first, torch.rand(4, generator=generator))


def test_derived_seeds_differ_by_every_name_and_never_change():
    assert derive(0, "data", 1) == 8165894808592580005
    seeds = {
        derive(s, *names) for s in (0, 1) for names in [(), ("a",), ("a", 1), ("a", "1"), ("a", "b"), ("ab",)]
    }
    assert len(seeds) == 12
    assert all(0 <= seed < 2**63 for seed in seeds)
