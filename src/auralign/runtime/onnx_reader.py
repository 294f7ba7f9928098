"""Reads the constant tensors and the graph of an ONNX file without the onnx package.

ONNX is a protocol-buffer message. Only the fields that name weights are decoded (onnx.proto3, IR version 3+):
``ModelProto.graph = 7``; ``GraphProto.node = 1, initializer = 5``;
``NodeProto.input = 1, output = 2, op_type = 4``;
``TensorProto.dims = 1, data_type = 2, float_data = 4, int64_data = 7, name = 8, raw_data = 9,
external_data = 13``.
Wire format: every field is a key ``(number << 3) | type`` and a payload; types 0 varint, 1 eight bytes,
2 length-delimited, 5 four bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from auralign.errors import ModelUnavailableError

_DTYPES: dict[int, np.dtype] = {
    1: np.dtype("<f4"),
    2: np.dtype("u1"),
    3: np.dtype("i1"),
    6: np.dtype("<i4"),
    7: np.dtype("<i8"),
}


@dataclass(frozen=True)
class Node:
    """One operation of the graph."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class OnnxGraph:
    """The operations in order and the constant tensors by name."""

    nodes: tuple[Node, ...] = ()
    tensors: dict[str, np.ndarray] = field(default_factory=dict)


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a varint is longer than 64 bits")


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Field number and payload of each field of one message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} is unknown")
        if at + size > len(data):
            raise ValueError("a field runs past the end of the file")
        yield number, data[at : at + size]
        at += size


def _text(payload: int | memoryview) -> str:
    return bytes(payload).decode("utf-8") if isinstance(payload, memoryview) else str(payload)


def _bytes(payload: int | memoryview) -> memoryview:
    if isinstance(payload, int):
        raise ValueError("a message was expected where a number is")
    return payload


def _node(data: memoryview) -> Node:
    op, inputs, outputs = "", [], []
    for number, payload in _fields(data):
        if number == 1:
            inputs.append(_text(payload))
        elif number == 2:
            outputs.append(_text(payload))
        elif number == 4:
            op = _text(payload)
    return Node(op, tuple(inputs), tuple(outputs))


def _integers(payload: int | memoryview) -> list[int]:
    """A repeated integer field, packed or one at a time; negative ones take ten bytes."""
    if isinstance(payload, int):
        values = [payload]
    else:
        values, at = [], 0
        while at < len(payload):
            value, at = _varint(payload, at)
            values.append(value)
    return [value - 2**64 if value >= 2**63 else value for value in values]


def _external_slice(entries: dict[str, str], external: bytes) -> bytes:
    start = int(entries.get("offset", "0"))
    end = start + int(entries["length"]) if "length" in entries else len(external)
    if not 0 <= start <= end <= len(external):
        raise ValueError("external data points outside its file")
    return external[start:end]


def _tensor(data: memoryview, external: bytes) -> tuple[str, np.ndarray | None]:
    name, kind, raw = "", 0, b""
    dims: list[int] = []
    numbers: list[float] = []
    entries: dict[str, str] = {}
    for number, payload in _fields(data):
        if number == 1:
            dims.extend(_integers(payload))
        elif number == 2 and isinstance(payload, int):
            kind = payload
        elif number == 4:
            block = bytes(_bytes(payload))
            numbers.extend(struct.unpack(f"<{len(block) // 4}f", block))
        elif number == 7:
            numbers.extend(_integers(payload))
        elif number == 8:
            name = _text(payload)
        elif number == 9:
            raw = bytes(_bytes(payload))
        elif number == 13:
            pair = {n: _text(p) for n, p in _fields(_bytes(payload))}
            entries[pair.get(1, "")] = pair.get(2, "")
    if kind not in _DTYPES:
        return name, None
    if entries:
        raw = _external_slice(entries, external)
    values = np.asarray(numbers, dtype=_DTYPES[kind]) if numbers else np.frombuffer(raw, dtype=_DTYPES[kind])
    if values.size != int(np.prod(dims, dtype=np.int64)):
        raise ValueError(f"tensor '{name}' has {values.size} values for shape {dims}")
    return name, values.reshape(dims).copy()


def read_onnx(model: bytes, external: bytes = b"") -> OnnxGraph:
    """Decode the nodes and the constant tensors.

    Args:
        model: Bytes of the ``.onnx`` file.
        external: Bytes of its external data file, where the tensors lie outside.

    Returns:
        The graph; tensors of element types other than float32 and integers up to 64 bits are left out.
    """
    nodes: list[Node] = []
    tensors: dict[str, np.ndarray] = {}
    try:
        for number, graph in _fields(memoryview(model)):
            if number != 7:
                continue
            for inner, payload in _fields(_bytes(graph)):
                if inner == 1:
                    nodes.append(_node(_bytes(payload)))
                elif inner == 5:
                    name, values = _tensor(_bytes(payload), external)
                    if values is not None:
                        tensors[name] = values
    except (ValueError, IndexError, struct.error) as error:
        raise ModelUnavailableError("the ONNX file cannot be decoded", why=str(error)) from error
    if not nodes:
        raise ModelUnavailableError("the ONNX file holds no graph", hint="fetch the weights again")
    return OnnxGraph(tuple(nodes), tensors)
