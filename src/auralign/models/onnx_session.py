"""An ONNX network opened for the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from auralign.errors import ModelUnavailableError


def open_session(file: Path, threads: int | None) -> Any:
    """An onnxruntime session of a file.

    Args:
        file: The network.
        threads: Threads of one operation; ``None`` takes torch's number.

    Raises:
        ModelUnavailableError: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ModelUnavailableError(
            "the network needs onnxruntime", where=str(file), hint="pip install 'auralign[metrics]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads() if threads is None else threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(file.read_bytes(), options, providers=["CPUExecutionProvider"])
