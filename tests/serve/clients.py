"""Clients of a served bundle: good requests over both protocols, and every kind of bad one."""

from __future__ import annotations

import http.client
import json
import os
import random
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from vtn_export.backends import Sessions
from vtn_export.bundle import Bundle
from vtn_export.serve.server import TritonServer
from vtn_export.spec import FRAME_INDEX, FRAMES, LENGTHS, LOGITS, Array

CROP = 32
TYPES = {"uint8": "UINT8", "int32": "INT32", "float32": "FP32"}


def client(server: TritonServer, protocol: str) -> Any:
    module, address = (tritonclient.http, server.http) if protocol == "http" else (tritonclient.grpc, server.grpc)
    return module.InferenceServerClient(address)


def infer(client: Any, arrays: dict[str, Array], model: str = "vtn", **options: Any) -> Any:
    module = tritonclient.http if isinstance(client, tritonclient.http.InferenceServerClient) else tritonclient.grpc
    inputs = []
    for name, array in arrays.items():
        tensor = module.InferInput(name, list(array.shape), TYPES[str(array.dtype)])
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return client.infer(model, inputs, **options)


def clip(frames: int, clips: int = 1, seed: int = 0) -> dict[str, Array]:
    """Tensors as a client sends them: lengths is `[clips, 1]`."""
    generator = np.random.default_rng(seed + 1000 * frames + clips)
    return {
        FRAMES: generator.integers(0, 256, (clips, frames, CROP, CROP, 3), dtype=np.uint8),
        FRAME_INDEX: np.sort(generator.integers(0, 900, (clips, frames), dtype=np.int32), axis=1),
        LENGTHS: generator.integers(1, frames + 1, (clips, 1), dtype=np.int32),
    }


def expected(sessions: Sessions, arrays: dict[str, Array]) -> Array:
    """The library's logits `[clips, classes]`."""
    logits: Array = sessions["full"].run({**arrays, LENGTHS: arrays[LENGTHS][:, 0]})[LOGITS]
    return logits


def resident(pid: int) -> int:
    """Bytes of a process and its descendants, shared pages counted in each."""
    total = 0
    for status in [*Path("/proc").glob(f"{pid}/status")]:
        total += sum(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmRSS:"))
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        total += sum(resident(int(child)) // 1024 for child in task.read_text().split())
    return total * 1024


@dataclass
class Crowd:
    """`clients` threads that ask for `seconds`, mixing good and bad requests; what came of it."""

    server: TritonServer
    bundle: Bundle
    clients: int
    seconds: float
    seed: int
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)

    def run(self) -> None:
        with Sessions(self.bundle) as sessions:
            self.good = [(arrays, expected(sessions, arrays)) for arrays in map(clip, (1, 3, 5, 17, 24))]
        end = time.monotonic() + self.seconds
        threads = [
            threading.Thread(target=self._client, args=(number, end), daemon=True) for number in range(self.clients)
        ]
        for thread in threads:
            thread.start()
        assert self.server.process is not None
        while time.monotonic() < end:
            self.memory.append((time.monotonic() - end + self.seconds, resident(self.server.process.pid)))
            time.sleep(self.seconds / 50)
        for thread in threads:
            thread.join(60)
        hanging = sum(thread.is_alive() for thread in threads)
        if hanging:
            self.wrong.append(f"{hanging} clients wait for an answer")

    def growth(self) -> int:
        """Bytes that the second half of the run holds more than the end of the first (peaks, by tenths)."""
        peaks = [
            max(size for moment, size in self.memory if low <= moment / self.seconds < low + 0.2) for low in (0.3, 0.8)
        ]
        return peaks[1] - peaks[0]

    def _client(self, number: int, end: float) -> None:
        generator = random.Random(self.seed * 1000 + number)
        protocol = ("http", "grpc")[number % 2]
        connection = client(self.server, protocol)
        bad = [
            self._wrong_shape,
            self._wrong_type,
            self._too_long,
            self._bad_length,
            self._missing,
            self._lies,
            self._cut,
        ]
        while time.monotonic() < end:
            try:
                if generator.random() < 0.5:
                    arrays, logits = generator.choice(self.good)
                    got = infer(connection, arrays).as_numpy(LOGITS)
                    if got.shape != logits.shape or np.abs(got - logits).max() > 1e-5 * max(1, np.abs(logits).max()):
                        self.wrong.append(f"{protocol}: another answer for {arrays[FRAMES].shape}")
                    self.counts["good"] += 1
                else:
                    generator.choice(bad)(connection, generator)
            except Exception as error:
                self.wrong.append(f"{protocol}: {type(error).__name__}: {str(error)[:200]}")

    def _refused(self, kind: str, connection: Any, arrays: dict[str, Array]) -> None:
        try:
            infer(connection, arrays)
        except InferenceServerException as error:
            self.counts[kind] += 1
            if "Traceback" in str(error) or "terminated" in str(error):
                self.wrong.append(f"{kind}: {str(error)[:200]}")
        else:
            self.wrong.append(f"{kind}: answered")

    def _wrong_shape(self, connection: Any, generator: random.Random) -> None:
        arrays = dict(clip(3))
        arrays[FRAMES] = generator.choice([arrays[FRAMES][..., :2], arrays[FRAMES][0], arrays[FRAMES][:, :, 1:]]).copy()
        self._refused("wrong shape", connection, arrays)

    def _wrong_type(self, connection: Any, generator: random.Random) -> None:
        arrays = dict(clip(3))
        name = generator.choice([FRAMES, FRAME_INDEX])
        self._refused("wrong type", connection, {**arrays, name: arrays[name].astype(np.float32)})

    def _too_long(self, connection: Any, generator: random.Random) -> None:
        self._refused("too long", connection, clip(201 + generator.randrange(200)))

    def _bad_length(self, connection: Any, generator: random.Random) -> None:
        length = generator.choice([-1, 0, 4, 2**31 - 1])
        self._refused("bad length", connection, {**clip(3), LENGTHS: np.array([[length]], np.int32)})

    def _missing(self, connection: Any, generator: random.Random) -> None:
        arrays = dict(clip(3))
        del arrays[FRAMES]
        self._refused("missing input", connection, arrays)

    def _lies(self, connection: Any, generator: random.Random) -> None:
        """A header that announces terabytes, or no JSON at all, with a few bytes behind it."""
        shape = [1, 2**31, CROP, CROP, 3]
        tensor = {"name": FRAMES, "datatype": "UINT8", "shape": shape, "parameters": {"binary_data_size": 2**40}}
        header = generator.choice([json.dumps({"inputs": [tensor]}), '{"inputs": [', "[" * 5000, "\x00\xff"]).encode(
            "latin1"
        )
        plain = http.client.HTTPConnection(self.server.http, timeout=30)
        headers = {"Inference-Header-Content-Length": str(len(header) + generator.choice([0, 0, 10**6]))}
        plain.request("POST", "/v2/models/vtn/infer", header + b"few", headers)
        if plain.getresponse().status < 400:
            self.wrong.append("a header that lies was answered")
        plain.close()
        self.counts["lies"] += 1

    def _cut(self, connection: Any, generator: random.Random) -> None:
        """A connection that ends in the middle of a request, or before its answer."""
        host, port = generator.choice([self.server.http, self.server.grpc]).split(":")
        body = os.urandom(20_000)
        with socket.create_connection((host, int(port)), timeout=30) as plain:
            length = f"Content-Length: {2 * len(body)}"
            head = f"POST /v2/models/vtn/infer HTTP/1.1\r\nHost: {host}\r\n{length}\r\n\r\n".encode()
            plain.sendall((head + body)[: generator.randrange(1, len(head) + len(body))])
        self.counts["cut"] += 1
