"""The Ray cluster of a batch run: joined or started, large enough, and every node sees what this machine sees."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from vtn_export.batch.decode import Decoder
from vtn_export.bundle import MANIFEST, Bundle
from vtn_export.deps import require
from vtn_export.errors import BackendError
from vtn_export.runtime.session import available_cpus
from vtn_export.untrusted import sha256

ANSWER_SECONDS = 120.0  # for a cluster to take a driver in
NODE_SECONDS = 120.0  # for a node to start a process and look around


def connect(address: str, actors: int) -> None:
    """Join a cluster, or with `auto` the one that runs here, else start one. Raises BackendError and
    MissingDependencyError."""
    require("ray.data")
    ray = require("ray")
    try:
        if ray.is_initialized():
            pass
        elif address == "auto":
            try:
                found = _address_here()
                require_cluster(found)
                ray.init(found, log_to_driver=False, logging_level="ERROR")
            except (OSError, RuntimeError):  # none, or one that was killed and left its address, for which Ray waits
                # sessions come on top of the decoders, as on one machine without Ray
                processors = available_cpus() + actors
                ray.init(
                    "local",
                    num_cpus=processors,
                    log_to_driver=False,
                    logging_level="ERROR",
                    include_dashboard=False,
                )
        else:
            require_cluster(address)
            ray.init(address, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # Ray's own errors have no common base
        text = " ".join(str(error).split())[:160]
        raise BackendError(f"--ray {address}: no cluster answers ({text}); start one with `ray start --head`") from None
    processors = int(ray.cluster_resources().get("CPU", 0))
    if processors < actors + 1:  # the sessions would hold them all and wait for a decoder for ever
        raise BackendError(
            f"--ray {address}: got a cluster of {processors} processors, expected at least {actors + 1}: "
            f"one a session (--actors {actors}) and one to decode; add a node"
        )


def _address_here() -> str:
    """Of the cluster that was last started on this machine. Raises OSError where there is none."""
    if address := os.environ.get("RAY_ADDRESS"):
        return address
    return Path("/tmp/ray/ray_current_cluster").read_text(encoding="utf-8").strip()  # where `ray start` notes it


def require_cluster(address: str, seconds: float = ANSWER_SECONDS) -> None:
    """Raise OSError, ValueError or RuntimeError unless a cluster at the address takes a driver in.

    Tried in a process of its own: Ray ends the process that finds nobody there, and waits for ever for a
    listener that is not Ray.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host:
        raise ValueError("expected `auto` or HOST:PORT")
    socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    code = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False, logging_level='ERROR')"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, address], capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"what listens there is not Ray, or did not answer within {seconds:.0f} s") from None
    if done.returncode:
        raise RuntimeError(([line for line in done.stderr.splitlines() if line.strip()] or ["no message"])[-1])


def require_nodes(bundle: Bundle, decoder: Decoder, out: Path) -> None:
    """Every node has vtn-export, the bundle and RESULTS where this machine has them. Raises BackendError.

    Otherwise each video would fail on its own, with an error that tells nothing of its cause. Nodes that join later
    fail in the same words, when their first session opens.
    """
    ray = require("ray")
    affinity = require("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy
    look = ray.remote(num_cpus=0, max_retries=0)(_look_around)
    arguments = (str(bundle.path.resolve()), sha256(bundle.path / MANIFEST), str(out.resolve()), decoder)
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    asked = {
        look.options(scheduling_strategy=affinity(node["NodeID"], soft=False)).remote(*arguments): node
        for node in nodes
    }
    ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=NODE_SECONDS)
    for answer in ready:
        try:
            found = ray.get(answer)
        except ray.exceptions.RayTaskError as error:  # the function did not get as far as looking
            found = last_line(error)
        except ray.exceptions.RayError:  # the node or the process died: Ray works around that
            continue
        if found:
            raise BackendError(f"--ray: node {asked[answer]['NodeManagerAddress']}: {found}; see docs/batch.md")


def _look_around(bundle: str, manifest_sha256: str, out: str, decoder: Decoder) -> str:
    """What is missing on this node, or nothing."""
    require("pyarrow")
    if not (Path(bundle) / MANIFEST).is_file():
        return f"no bundle at {bundle}, expected the paths of the driver"
    if sha256(Path(bundle) / MANIFEST) != manifest_sha256:
        return f"another bundle at {bundle}"
    if not Path(out).is_dir():
        return f"no folder {out}, expected the driver's results there"
    return ""


def last_line(error: BaseException) -> str:
    """What Ray's errors say last: the cause; the lines before it are the way there."""
    return ([line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__])[-1][:300]
