"""A real Triton Inference Server on this machine, from the `nvidia-pytriton` wheel: for trials and tests.

The wheel holds the server program and its Python backend (not the ONNX Runtime or TensorRT backends, which a
repository of `vtn-export triton` does not need). In production run NVIDIA's container (docs/serving.md).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from vtn_export.errors import BackendError, MissingDependencyError, VtnError

_STUB = "triton_python_backend_stub"


class TritonServer:
    """`with TritonServer(repository) as server:` starts, waits until it is ready, and ends it again.

    `http`, `grpc`, `metrics`: "127.0.0.1:PORT". `log`: the file its output goes to. Raises BackendError when it does
    not start, with the last line of the log, and MissingDependencyError.
    """

    def __init__(self, repository: Path, *, options: Sequence[str] = (), start_seconds: float = 120.0) -> None:
        self.repository, self.options, self.start_seconds = repository, list(options), start_seconds
        self.ports = dict(zip(("http", "grpc", "metrics"), _free_ports(3), strict=True))
        self.http, self.grpc, self.metrics = (f"127.0.0.1:{port}" for port in self.ports.values())
        self._folder = tempfile.TemporaryDirectory(prefix="vtn-export-triton.")
        self.log = Path(self._folder.name) / "server.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        package = _wheel()
        backend = Path(self._folder.name) / "backends" / "python"
        if not backend.exists():
            shutil.copytree(package / "tritonserver" / "backends" / "python", backend)
            version = f"{sys.version_info.major}.{sys.version_info.minor}"
            shutil.copy(package / "tritonserver" / "python_backend_stubs" / version / _STUB, backend / _STUB)
            (backend / _STUB).chmod(0o755)
        program = package / "tritonserver" / "bin" / "tritonserver"
        program.chmod(program.stat().st_mode | 0o111)
        libraries = package.parent / "nvidia_pytriton.libs"
        # the server embeds an interpreter of its own: model.py finds this one's packages by their path
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": f"{libraries}:{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(":"),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if "site-packages" in path),
        }
        command = [
            str(program),
            f"--model-repository={self.repository.resolve()}",
            f"--backend-directory={backend.parent}",
            *(f"--{name}-address=127.0.0.1" for name in ("http", "grpc", "metrics")),
            *(f"--{name}-port={port}" for name, port in self.ports.items()),
            "--disable-auto-complete-config",
            "--exit-timeout-secs=10",
            *self.options,
        ]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + self.start_seconds
        while not self.ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                lines = self.log.read_text(errors="replace").splitlines()
                reason = next((line for line in lines if "failed to load '" in line), (lines or ["no message"])[-1])
                raise BackendError(f"tritonserver did not start: {reason[:300]}")
            time.sleep(0.1)

    def ready(self) -> bool:
        """Whether the server and every model answer."""
        try:
            with urllib.request.urlopen(f"http://{self.http}/v2/health/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def __enter__(self) -> TritonServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._folder.cleanup()


def _wheel() -> Path:
    found = importlib.util.find_spec("pytriton")
    if found is None or not found.submodule_search_locations:
        raise MissingDependencyError("tritonserver is not installed; pip install --no-deps nvidia-pytriton==0.7.0")
    return Path(found.submodule_search_locations[0])


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [int(item.getsockname()[1]) for item in sockets]
    finally:
        for item in sockets:
            item.close()


def main() -> None:
    """`python -m vtn_export.serve.server REPOSITORY`: serve until Ctrl-C."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m vtn_export.serve.server MODEL_REPOSITORY")
    try:
        with TritonServer(Path(sys.argv[1])) as server:
            sys.stdout.write(f"http {server.http}, grpc {server.grpc}, metrics {server.metrics}; Ctrl-C ends it\n")
            sys.stdout.flush()
            assert server.process is not None
            server.process.wait()
    except VtnError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
