"""The one file format of trained models: precision, description, digest, refusals."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from auralign.errors import ModelUnavailableError
from auralign.models.model_file import read_model, write_model

META = {"format": "toy-1", "options": '{"a": 2}'}


def tensors() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        "matrix": torch.randn(3, 4, generator=draw),
        "vector": torch.randn(5, generator=draw),
        "count": torch.tensor(7),
        "turned": torch.randn(4, 3, generator=draw).t(),
        "last": torch.randn(2, 3, 4, 5, generator=draw).to(memory_format=torch.channels_last),
    }


@pytest.fixture
def folder(tmp_path):
    write_model(tmp_path / "deep" / "model", tensors(), META, {"name": "toy"}, half=False)
    return tmp_path / "deep" / "model"


def read(place):
    return read_model(place, kind="toy", wanted="toy-1")


def test_what_is_written_is_read_from_the_folder_and_from_the_file(folder):
    for place in (folder, folder / "model.safetensors"):
        found, meta, path = read(place)
        assert meta == META
        assert path == folder / "model.safetensors"
        assert found.keys() == tensors().keys()
        for name, value in tensors().items():
            assert torch.equal(found[name], value), name
    assert sorted(p.name for p in folder.iterdir()) == ["card.json", "model.safetensors"]


def test_half_precision_is_for_matrices_and_kernels_only(tmp_path):
    write_model(tmp_path, tensors(), META, {}, half=True)
    stored = load_file(tmp_path / "model.safetensors")
    kinds = {name: value.dtype for name, value in stored.items()}
    half, full = torch.float16, torch.float32
    assert kinds == {"matrix": half, "turned": half, "last": half, "vector": full, "count": torch.int64}
    found, _, _ = read(tmp_path)
    assert found["matrix"].dtype == torch.float32
    assert found["count"].dtype == torch.int64
    torch.testing.assert_close(found["matrix"], tensors()["matrix"], atol=1e-3, rtol=1e-3)
    assert torch.equal(found["vector"], tensors()["vector"])


def test_the_card_holds_what_was_said_the_format_and_the_digest(folder):
    card = json.loads((folder / "card.json").read_text())
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert card == {"name": "toy", "format": "toy-1", "files": {"model.safetensors": digest}}
    with safe_open(str(folder / "model.safetensors"), framework="pt") as file:
        assert file.metadata() == META


def test_gradients_and_other_devices_layouts_are_no_obstacle(tmp_path):
    weight = torch.nn.Parameter(torch.ones(2, 2))
    write_model(tmp_path, {"weight": weight}, META, {}, half=False)
    assert torch.equal(read(tmp_path)[0]["weight"], torch.ones(2, 2))


def test_without_a_card_the_file_is_taken_as_it_is(folder):
    (folder / "card.json").unlink()
    assert read(folder)[1] == META


def test_a_changed_file_is_refused(folder):
    changed = tensors() | {"vector": torch.zeros(5)}
    save_file({k: v.contiguous() for k, v in changed.items()}, folder / "model.safetensors", metadata=META)
    with pytest.raises(ModelUnavailableError, match="the model is damaged") as error:
        read(folder)
    assert "To fix" in str(error.value)


@pytest.mark.parametrize("card", ["", "{", "[]", "{}", '{"files": {}}', '{"files": 3}'])
def test_a_damaged_card_is_named(folder, card):
    (folder / "card.json").write_text(card)
    with pytest.raises(ModelUnavailableError, match=r"card is damaged") as error:
        read(folder)
    assert "card.json" in str(error.value)


def test_a_file_of_another_kind_is_refused_with_its_format(folder):
    with pytest.raises(ModelUnavailableError, match="not an auralign toy") as error:
        read_model(folder, kind="toy", wanted="toy-2")
    assert "'toy-1'" in str(error.value)


def test_files_that_are_missing_cut_or_no_tensors_are_named(folder, tmp_path):
    with pytest.raises(ModelUnavailableError, match="the toy cannot be read"):
        read(tmp_path / "nowhere")
    whole = (folder / "model.safetensors").read_bytes()
    for content in (b"", whole[:20], whole[:-3], b"not a model at all"):
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(ModelUnavailableError, match="the toy cannot be read"):
            read(folder)
