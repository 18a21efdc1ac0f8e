"""examples/serve against the real server: the lines that `vtn-export run` would print."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.clihelp import Cli
from vtn_export.bundle import Bundle
from vtn_export.serve.server import TritonServer
from vtn_export.video import shipped_clip

EXAMPLES = Path(__file__).parent.parent.parent / "examples" / "serve"


def run(*arguments: object) -> str:
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_classify(cli: Cli, bundle: Bundle, server: TritonServer) -> None:
    want = [entry["label"] for entry in cli("run", bundle.path, shipped_clip(), "--json").json["top"]]
    for options in (["--url", server.http], ["--grpc", "--url", server.grpc]):
        lines = run(EXAMPLES / "classify.py", bundle.path, shipped_clip(), *options).splitlines()
        assert [line.split("  ")[1] for line in lines] == want


def test_camera(stream_server: TritonServer, bundle: Bundle) -> None:
    lines = run(EXAMPLES / "camera.py", bundle.path, shipped_clip(), "--url", stream_server.grpc).splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["frame 2", "frame 5", "frame 8"]
    again = run(EXAMPLES / "camera.py", bundle.path, shipped_clip(), "--url", stream_server.grpc).splitlines()
    assert again == lines, "the sequence ended and started anew"
