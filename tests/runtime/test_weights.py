"""Weights by name: sources in order, hashes, conversion once, safe with two at a time, pickles refused."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import subprocess
import sys
import threading
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file

from auralign.errors import ModelUnavailableError, UsageError
from auralign.runtime import convert, weights, wheels
from auralign.runtime.weights_registry import PRETRAINED, Member, WeightSpec, packaged_specs

TENSOR_BYTES = save({"gain": torch.arange(4.0)})


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def nested_zip(name: str, data: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, data)
    return stream.getvalue()


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder with one small wheel, an empty cache, and a registry that knows only that wheel."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    wheel = folder / "toy-1.0-py3-none-any.whl"
    inner = nested_zip("deep/words.txt", b"one\ntwo\n")
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("toy/model.safetensors", TENSOR_BYTES)
        archive.writestr("toy/words.zip", inner)
    spec = WeightSpec(
        name="toy",
        version="1.0",
        purpose="a test",
        licence="CC0-1.0",
        citation="nobody",
        package="toy",
        wheel=wheel.name,
        wheel_sha256=sha(wheel.read_bytes()),
        size_bytes=wheel.stat().st_size,
        members=(
            Member("toy/model.safetensors", sha(TENSOR_BYTES), "model.safetensors"),
            Member("toy/words.zip!deep/words.txt", sha(b"one\ntwo\n"), "words.txt"),
        ),
    )
    monkeypatch.setattr(weights, "PRETRAINED", (spec,))
    monkeypatch.setenv("AURALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AURALIGN_WHEELS", str(folder))
    monkeypatch.setenv("AURALIGN_OFFLINE", "1")
    monkeypatch.setattr(weights, "_verified", {})
    return wheel


def test_a_wheel_is_converted_once_and_then_not_needed(shelf):
    folder = weights.path("toy")
    assert (folder / "words.txt").read_text() == "one\ntwo\n"
    assert weights.tensors("toy")["gain"].tolist() == [0.0, 1.0, 2.0, 3.0]
    shelf.unlink()
    assert weights.path("toy") == folder
    assert not list(folder.parent.glob(".*")), "scratch folders are removed"


def test_the_card_names_source_licence_and_hashes(shelf):
    card = json.loads((weights.path("toy") / "card.json").read_text())
    assert card["licence"] == "CC0-1.0"
    assert card["wheel_sha256"] == sha(shelf.read_bytes())
    assert card["source"][0] == {
        "member": "toy/model.safetensors",
        "sha256": sha(TENSOR_BYTES),
        "form": "copy",
    }
    assert card["files"]["model.safetensors"] == sha(TENSOR_BYTES)


def test_offline_error_lists_every_place_looked_at(shelf, tmp_path):
    shelf.unlink()
    with pytest.raises(ModelUnavailableError) as caught:
        weights.path("toy")
    text = str(caught.value)
    for place in (str(shelf), str(tmp_path / "cache" / "wheels"), "pip: not asked", "AURALIGN_WHEELS"):
        assert place in text
    assert caught.value.exit_code == 3


def test_a_wheel_with_another_hash_is_refused(shelf):
    shelf.write_bytes(shelf.read_bytes() + b"x")
    with pytest.raises(ModelUnavailableError, match="SHA-256"):
        weights.path("toy")
    assert not weights.is_cached("toy")


def test_a_member_with_another_hash_is_refused(shelf, monkeypatch):
    spec = weights.registry()["toy"]
    wrong = Member("toy/model.safetensors", "0" * 64, "model.safetensors")
    monkeypatch.setattr(weights, "PRETRAINED", (WeightSpec(**{**vars(spec), "members": (wrong,)}),))
    with pytest.raises(ModelUnavailableError, match="another SHA-256"):
        weights.path("toy")
    assert not list((wheels.cache_dir() / "weights" / "toy").iterdir())


def test_a_missing_member_is_named(shelf):
    with pytest.raises(ModelUnavailableError, match=r"no toy/none\.bin"):
        wheels.read_member(shelf, Member("toy/none.bin", "0" * 64, "x"))


def test_a_damaged_copy_is_refused_and_download_repairs_it(shelf):
    file = weights.path("toy") / "model.safetensors"
    file.write_bytes(TENSOR_BYTES[:-1] + b"\x01")
    with pytest.raises(ModelUnavailableError, match="damaged"):
        weights.path("toy")
    with pytest.raises(ModelUnavailableError, match="damaged"):
        weights.verify("toy")
    weights.download("toy")
    weights.verify("toy")
    assert file.read_bytes() == TENSOR_BYTES


def test_verify_reads_the_file_again_even_when_size_and_date_are_kept(shelf):
    import os

    file = weights.path("toy") / "words.txt"
    stat = file.stat()
    file.write_bytes(b"onE\ntwo\n")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert weights.path("toy") == file.parent, "path() trusts an unchanged size and date within one process"
    with pytest.raises(ModelUnavailableError, match="damaged"):
        weights.verify("toy")


def test_a_missing_companion_or_card_is_told(shelf):
    folder = weights.path("toy")
    (folder / "words.txt").unlink()
    with pytest.raises(ModelUnavailableError, match="missing"):
        weights.path("toy")
    (folder / "card.json").write_text("{")
    with pytest.raises(ModelUnavailableError, match="card"):
        weights.path("toy")
    (folder / "card.json").write_text('{"files": {}}')
    with pytest.raises(ModelUnavailableError, match="no hash"):
        weights.path("toy")
    weights.download("toy")
    weights.verify("toy")


def test_verify_of_absent_weights_says_how_to_get_them(shelf):
    with pytest.raises(ModelUnavailableError, match="models download toy"):
        weights.verify("toy")


def test_many_at_once_end_with_one_sound_copy(shelf):
    gate, results = threading.Barrier(6), []

    def fetch() -> None:
        gate.wait()
        results.append(weights.download("toy"))

    threads = [threading.Thread(target=fetch) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [weights.folder_of("toy")] * 6
    assert [p.name for p in weights.folder_of("toy").parent.iterdir()] == ["1.0"]


def test_pip_is_asked_for_the_pinned_version_and_hash_without_naming_an_index(shelf, monkeypatch):
    data, asked = shelf.read_bytes(), []
    shelf.unlink()

    def fake_run(command, **options):
        pinned = Path(command[command.index("--requirement") + 1]).read_text()
        asked.append((command, pinned))
        (Path(command[command.index("--dest") + 1]) / shelf.name).write_bytes(data)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", fake_run)
    weights.path("toy", offline=False)
    command, pinned = asked[0]
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert pinned == f"toy==1.0 --hash=sha256:{sha(data)}\n"
    assert not any("://" in part or part.startswith("--index") for part in command)
    assert (wheels.cache_dir() / "wheels" / shelf.name).is_file(), "the wheel is kept for later conversions"


@pytest.mark.parametrize(
    ("code", "wheel_bytes", "expected"), [(1, b"", "no route"), (0, b"other", "another SHA")]
)
def test_what_pip_says_is_passed_on(shelf, monkeypatch, code, wheel_bytes, expected):
    shelf.unlink()

    def fake_run(command, **options):
        if wheel_bytes:
            (Path(command[command.index("--dest") + 1]) / shelf.name).write_bytes(wheel_bytes)
        return subprocess.CompletedProcess(command, code, "", "ERROR: no route to the index\n")

    monkeypatch.setattr(subprocess, "run", fake_run)
    with pytest.raises(ModelUnavailableError, match=expected):
        weights.path("toy", offline=False)


def test_an_unknown_name_suggests_the_nearest(monkeypatch):
    with pytest.raises(UsageError, match="did you mean 'yamnet'"):
        weights.path("yamnett")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".PKL"])
def test_pickled_checkpoints_of_the_user_are_refused(tmp_path, suffix):
    file = tmp_path / f"model{suffix}"
    file.write_bytes(b"")
    with pytest.raises(UsageError, match="safetensors"):
        weights.path(str(file))


def test_a_users_folder_or_file_is_taken(tmp_path):
    file = tmp_path / "mine.safetensors"
    save_file({"a": torch.ones(2)}, file)
    assert weights.path(str(file)) == file
    assert weights.safetensors_file(str(tmp_path)) == file
    assert weights.tensors(str(tmp_path))["a"].tolist() == [1.0, 1.0]
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelUnavailableError, match=r"2 \.safetensors files"):
        weights.path(str(tmp_path))


def test_a_users_folder_of_pickles_is_refused_by_name(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelUnavailableError, match=r"pytorch_model\.bin"):
        weights.path(str(tmp_path))


def test_a_users_missing_or_foreign_or_broken_file_is_an_error(tmp_path):
    with pytest.raises(ModelUnavailableError, match="no such file"):
        weights.path(str(tmp_path / "none.safetensors"))
    other = tmp_path / "model.onnx"
    other.write_bytes(b"x")
    with pytest.raises(UsageError, match="safetensors"):
        weights.path(str(other))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x00" * 5)
    with pytest.raises(ModelUnavailableError, match="cannot be read"):
        weights.tensors(str(broken))


def test_a_hub_id_is_fetched_without_pickles_and_offline_is_obeyed(tmp_path, monkeypatch):
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    asked = []

    def snapshot_download(name, **options):
        asked.append((name, options))
        if name == "some/missing":
            raise OSError("404 for some/missing")
        return str(tmp_path)

    hub = types.ModuleType("huggingface_hub")
    hub.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert weights.path("hub:some/model", offline=True) == tmp_path
    name, options = asked[0]
    assert name == "some/model"
    assert options["local_files_only"] is True
    assert not any(p.endswith((".bin", ".pt", ".pth")) for p in options["allow_patterns"])
    with pytest.raises(ModelUnavailableError, match="404"):
        weights.path("hub:some/missing")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelUnavailableError, match=r"auralign\[clap\]"):
        weights.path("hub:some/model")


def test_models_in_the_package_appear_in_the_registry(tmp_path, monkeypatch):
    folder = tmp_path / "tiny"
    folder.mkdir()
    save_file({"a": torch.ones(1)}, folder / "model.safetensors")
    digest = sha((folder / "model.safetensors").read_bytes())
    (folder / "card.json").write_text(json.dumps({"version": "2", "files": {"model.safetensors": digest}}))
    monkeypatch.setattr(weights, "PACKAGED", tmp_path)
    spec = weights.registry()["tiny"]
    assert spec.packaged
    assert spec.version == "2"
    assert weights.path("tiny") == folder
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelUnavailableError, match="install auralign again"):
        weights.path("tiny")
    (folder / "card.json").write_text("[")
    with pytest.raises(ModelUnavailableError, match="not JSON"):
        packaged_specs(tmp_path)


def test_every_pinned_entry_is_complete():
    for spec in PRETRAINED:
        assert len(spec.wheel_sha256) == 64
        assert spec.licence
        assert spec.citation
        assert spec.purpose
        assert spec.wheel.startswith(spec.package.replace("-", "_") + "-" + spec.version)
        names = {m.save_as for m in spec.members}
        assert "model.safetensors" in names or any(name.endswith(".onnx") for name in names)
        assert all(len(m.sha256) == 64 and m.form in convert.FORMS for m in spec.members)


def test_import_needs_no_torch():
    code = "import sys, auralign.runtime.weights as w; w.registry(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_the_restricted_unpickler_runs_no_code(capsys):
    stream = io.BytesIO()
    torch.save({"weight": torch.ones(2), "extra": Evil()}, stream)
    with pytest.raises(ModelUnavailableError, match="more than tensors"):
        convert.FORMS["pickle"](stream.getvalue())
    with pytest.raises(ModelUnavailableError):
        convert.FORMS["pickle"](pickle.dumps(Evil(), protocol=2))
    assert "code ran" not in capsys.readouterr().out


def test_a_state_dict_with_numpy_scalars_beside_it_is_read():
    stream = io.BytesIO()
    torch.save(({"embedding_net.w": torch.ones(2), "fc.w": torch.ones(3)}, {"set": np.float64(3.0)}), stream)
    from safetensors.torch import load

    assert list(load(convert.FORMS["pickle-first"](stream.getvalue()))) == ["embedding_net.w"]


def onnx_only(shelf: Path, monkeypatch) -> None:
    """The registry knows one wheel whose network is an ONNX file."""
    with zipfile.ZipFile(shelf, "w") as archive:
        archive.writestr("toy/p.onnx", b"graph")
    spec = WeightSpec(
        **{
            **vars(weights.registry()["toy"]),
            "wheel_sha256": sha(shelf.read_bytes()),
            "members": (Member("toy/p.onnx", sha(b"graph"), "p.onnx"),),
        }
    )
    monkeypatch.setattr(weights, "PRETRAINED", (spec,))


def test_a_network_that_stays_onnx_is_kept_and_verified(shelf, monkeypatch):
    onnx_only(shelf, monkeypatch)
    folder = weights.path("toy")
    assert weights.is_cached("toy")
    assert (folder / "p.onnx").read_bytes() == b"graph"
    (folder / "p.onnx").write_bytes(b"grapf")
    with pytest.raises(ModelUnavailableError, match="damaged"):
        weights.verify("toy")
    assert (weights.download("toy") / "p.onnx").read_bytes() == b"graph"


def test_a_tensor_file_that_the_card_does_not_know_is_refused(shelf, monkeypatch):
    onnx_only(shelf, monkeypatch)
    (weights.path("toy") / "model.safetensors").write_bytes(TENSOR_BYTES)
    with pytest.raises(ModelUnavailableError, match="no hash"):
        weights.path("toy")


@pytest.mark.parametrize(("form", "key"), [("pickle-model", "model"), ("pickle-model-state", "model_state")])
def test_one_entry_of_a_checkpoint_becomes_the_tensor_file(form, key):
    from safetensors.torch import load

    stream = io.BytesIO()
    torch.save({"step": 3, key: {"gain": torch.ones(2), "norm.num_batches_tracked": torch.tensor(1)}}, stream)
    assert list(load(convert.FORMS[form](stream.getvalue()))) == ["gain"]
    other = io.BytesIO()
    torch.save({"step": 3}, other)
    with pytest.raises(ModelUnavailableError, match=f"no entry '{key}'"):
        convert.FORMS[form](other.getvalue())
