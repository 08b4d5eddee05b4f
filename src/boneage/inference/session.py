"""Open a network's file with ONNX Runtime, quietly and without telemetry."""

from pathlib import Path
from typing import Any

from boneage.errors import CheckpointError


def open_session(path: Path, threads: int = 0) -> Any:
    """Open an ONNX file for the CPU.

    Args:
        path: The file.
        threads: Threads for one run; 0 takes every core.

    Raises:
        CheckpointError: If it is missing or damaged.
    """
    import onnxruntime

    # Where the caller has loaded it before this package, it sends no more from here on.
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Waiting threads sleep: spinning gains nothing, and keeps a core that another could use.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises whatever the bytes provoke
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} is not a readable ONNX model: {reason}") from None
