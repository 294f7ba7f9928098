"""Checkpoints of Lightning: nothing in them runs, what is unknown is refused."""

from __future__ import annotations

import os
import pathlib
import sys
import types

import numpy as np
import pytest
import torch

from auralign.errors import ModelUnavailableError
from auralign.runtime.lightning_file import StandIn, read_lightning


@pytest.fixture
def foreign(monkeypatch):
    """Makes a class in a module that exists only while the file is written."""

    def make(module, name, base=object):
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            part = ".".join(parts[:end])
            monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
        kind = type(name, (base,), {"__module__": module})
        setattr(sys.modules[module], name, kind)
        return kind

    return make


def write(path, monkeypatch, **held):
    torch.save(held, path)
    monkeypatch.undo()
    return path


def test_tensors_and_plain_settings_come_back(tmp_path, monkeypatch):
    held = {"state_dict": {"a": torch.arange(3.0)}, "epoch": 4, "hyper_parameters": {"lr": 1e-4, "m": [1, 2]}}
    out = read_lightning(write(tmp_path / "x.ckpt", monkeypatch, **held), packages=())
    assert torch.equal(out["state_dict"]["a"], held["state_dict"]["a"])
    assert out["hyper_parameters"] == held["hyper_parameters"]


def test_known_classes_become_stand_ins(tmp_path, monkeypatch, foreign):
    module = foreign("sgmse.data_module", "SpecsDataModule")
    callback = foreign("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    thing = module()
    thing.seen = torch.ones(2)
    path = write(
        tmp_path / "x.ckpt",
        monkeypatch,
        hyper_parameters={"data_module_cls": module, "one": thing, "n": 3},
        callbacks={callback: {"best_model_score": np.float64(2.5)}},
    )
    assert "sgmse" not in sys.modules
    out = read_lightning(path, packages=["sgmse"])
    assert out["hyper_parameters"]["n"] == 3
    assert issubclass(out["hyper_parameters"]["data_module_cls"], StandIn)
    assert not vars(out["hyper_parameters"]["one"])
    assert next(iter(out["callbacks"].values())) == {"best_model_score": 2.5}


def test_settings_with_attributes_stay_a_dictionary(tmp_path, monkeypatch, foreign):
    kind = foreign("pytorch_lightning.utilities.parsing", "AttributeDict", dict)
    path = write(tmp_path / "x.ckpt", monkeypatch, hyper_parameters=kind(lr=0.5, sde="ouve"))
    assert dict(read_lightning(path, packages=())["hyper_parameters"]) == {"lr": 0.5, "sde": "ouve"}


def test_paths_are_dropped(tmp_path, monkeypatch):
    path = write(tmp_path / "x.ckpt", monkeypatch, where=pathlib.Path("/a/b"), kept=1)
    assert read_lightning(path, packages=())["kept"] == 1


class _Runs:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def test_code_in_a_file_is_refused_and_does_not_run(tmp_path, monkeypatch):
    path = write(tmp_path / "x.ckpt", monkeypatch, bad=_Runs(tmp_path / "made"))
    with pytest.raises(ModelUnavailableError, match="mkdir"):
        read_lightning(path, packages=["posix", "sgmse"][1:])
    assert not (tmp_path / "made").exists()


def test_even_a_function_of_a_known_package_only_becomes_a_stand_in(tmp_path, monkeypatch):
    """Naming ``posix`` as known does not make its functions callable: torch refuses the module, or it is inert."""
    path = write(tmp_path / "x.ckpt", monkeypatch, bad=_Runs(tmp_path / "made"))
    with pytest.raises(ModelUnavailableError):
        read_lightning(path, packages=["posix"])
    assert not (tmp_path / "made").exists()


def test_classes_of_other_packages_are_refused_by_name(tmp_path, monkeypatch, foreign):
    path = write(tmp_path / "x.ckpt", monkeypatch, other=foreign("elsewhere.things", "Thing"))
    with pytest.raises(ModelUnavailableError, match=r"elsewhere\.things\.Thing"):
        read_lightning(path, packages=["sgmse"])


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut short"])
def test_damaged_files_are_named(tmp_path, content):
    path = tmp_path / "x.ckpt"
    path.write_bytes(content)
    with pytest.raises(ModelUnavailableError, match=r"x\.ckpt"):
        read_lightning(path, packages=())


def test_a_cut_file_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "x.ckpt", monkeypatch, a=torch.zeros(1000))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ModelUnavailableError, match=r"x\.ckpt"):
        read_lightning(path, packages=())


def test_a_missing_file_and_a_lone_tensor_are_refused(tmp_path):
    with pytest.raises(ModelUnavailableError, match="No such file"):
        read_lightning(tmp_path / "none.ckpt", packages=())
    torch.save(torch.zeros(2), tmp_path / "x.ckpt")
    with pytest.raises(ModelUnavailableError, match="dictionary"):
        read_lightning(tmp_path / "x.ckpt", packages=())
