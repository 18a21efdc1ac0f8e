"""Starts the worker, passes its events on, and turns whatever ends it into an error that says so."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import vtn_export
from vtn_export import errors
from vtn_export.errors import EngineError, VtnError

Listener = Callable[[Mapping[str, Any]], None]


def run_worker(request: Mapping[str, Any], listener: Listener = lambda _event: None) -> dict[str, Any]:
    """Run one request in a process of its own; returns its result.

    listener: called with every event (`stage`, `phase`, `step`, `phase_done`, `warning`). Raises
    what the worker raised, and EngineError when it died: a signal, an abort inside the library.
    """
    with tempfile.TemporaryDirectory(prefix="vtn-trt-") as folder:
        path, log = Path(folder) / "request.json", Path(folder) / "log"
        path.write_text(json.dumps({**request, "parent": os.getpid()}), encoding="utf-8")
        reader, writer = os.pipe()
        with contextlib.ExitStack() as stack:
            stream = stack.enter_context(os.fdopen(reader, encoding="utf-8"))
            try:
                output = stack.enter_context(log.open("wb"))
                process = subprocess.Popen(
                    [sys.executable, "-m", "vtn_export.trt.worker", str(path), str(writer)],
                    pass_fds=(writer,),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=folder,
                    env={**os.environ, "PYTHONPATH": _python_path()},
                )
            finally:
                os.close(writer)
            try:
                result, error, stage = _listen(stream, listener)
                code = process.wait()
            finally:
                if process.poll() is None:  # Ctrl-C, or the listener raised
                    process.kill()
                    process.wait()
        if error is not None:
            kind = getattr(errors, str(error["kind"]), EngineError)
            raise kind(str(error["message"])) if issubclass(kind, VtnError) else EngineError(str(error["message"]))
        if code != 0 or result is None:
            raise EngineError(_death(code, stage, log))
        return result


def _listen(stream: Any, listener: Listener) -> tuple[dict[str, Any] | None, dict[str, Any] | None, str]:
    result = error = None
    stage = "starting"
    for line in stream:
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            break  # cut off in the middle of a line: the process died there
        kind = event.pop("event")
        if kind == "result":
            result = event
        elif kind == "error":
            error = event
        else:
            stage = event["stage"] if kind == "stage" else stage
            listener({"event": kind, **event})
    return result, error, stage


def _death(code: int, stage: str, log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    last = f"; its last words: {' '.join(lines[-1].split())[:300]}" if lines else ""
    if code == -signal.SIGKILL:
        return f"the builder was killed (SIGKILL) at stage {stage}, most likely out of memory; try a smaller profile"
    if code < 0:
        return f"the builder's process ended by {signal.Signals(-code).name} inside the library, at stage {stage}{last}"
    return f"the builder's process ended with exit code {code} at stage {stage}{last}"


def _python_path() -> str:
    """The package as this process has it, before what the environment says."""
    here = str(Path(vtn_export.__file__).parent.parent)
    return os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH", "")]))
