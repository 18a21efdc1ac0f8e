"""The same runs on Ray: its nodes, workers and drivers are killed too."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.batch.clips import Rows, make_archive, read, same
from tests.clihelp import Cli
from vtn_export import errors
from vtn_export.batch.results import PARTS
from vtn_export.batch.run import BatchOptions, Progress, run_batch
from vtn_export.batch.stage import Outcome
from vtn_export.bundle import Bundle

STORE = 200 << 20  # bytes of a node's object store
SETTINGS = {
    "RAY_memory_monitor_refresh_ms": "0",  # other programs' memory is not ours to be killed for
    "RAY_worker_niceness": "0",  # 15 by default: starved where tests share the processors
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without processors for tasks, so that it is never what is killed, and two nodes."""
    import ray

    os.environ.update(SETTINGS)
    for left in (2, 1, 0):
        try:
            made = new_cluster()
            break
        except Exception:  # Ray gives a node 30 s to start, whatever else the machine has to do
            ray.shutdown()
            if not left:
                raise
    ray.init(made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


def new_cluster() -> Any:
    from ray.cluster_utils import Cluster

    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False},
    )
    try:
        for _ in range(2):
            made.add_node(num_cpus=2, object_store_memory=STORE)
        made.wait_for_nodes()
    except Exception:
        made.shutdown()
        raise
    return made


def options(**changes: Any) -> BatchOptions:
    return BatchOptions(**{"frames": 24, "workers": 2, "ray": "auto", "part_rows": 7, **changes})


def children(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            yield int(child)
            yield from children(int(child))


def workers() -> list[int]:
    """Processes of this test's own Ray that run our stages."""
    found = []
    for pid in children(os.getpid()):
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if title.startswith(b"ray::") and b"Map" in title:
            found.append(pid)
    return found


def kill_everything(
    bundle: Bundle, archive: Path, out: Path, cluster: Any, chance: random.Random, nodes: int, rate: float
) -> tuple[int, int]:
    """Kill stage processes with probability `rate` an outcome, and `nodes` nodes at random outcomes."""
    total = sum(path.suffix == ".mp4" for path in archive.rglob("*"))
    moments = set(chance.sample(range(1, total - 3), nodes))
    seen = killed = 0

    def advance(outcome: Outcome) -> None:
        nonlocal seen, killed
        seen += 1
        if seen in moments:
            cluster.remove_node(chance.choice(sorted(cluster.worker_nodes, key=str)), allow_graceful=False)
            cluster.add_node(num_cpus=2, object_store_memory=STORE)
        elif chance.random() < rate and (found := workers()):
            os.kill(chance.choice(found), signal.SIGKILL)
            killed += 1

    run_batch(bundle, str(archive), out, options(features=True), Progress(advance=advance))
    assert seen == total
    return nodes, killed


def test_rows_are_those_of_one_machine(
    cluster: Any, bundle: Bundle, archive: Path, uninterrupted: Rows, batch_folder: Path, tmp_path: Path
) -> None:
    run_batch(bundle, str(archive), tmp_path / "out", options(features=True))
    rows = read(tmp_path / "out")
    same(rows, uninterrupted)
    files = {path.name for path in (tmp_path / "out" / "features").iterdir()}
    assert files == {row["features_file"] for row in rows.values()} - {None}
    run_batch(bundle, str(tmp_path / "out"), tmp_path / "again", options(mode="features"))
    same(read(tmp_path / "again"), {name: row for name, row in uninterrupted.items() if row["error"] is None})


def test_long_videos_are_decoded_where_they_are_classified(
    cluster: Any, bundle: Bundle, archive: Path, tmp_path: Path
) -> None:
    run_batch(bundle, str(archive / "1"), tmp_path / "ray", options(frames=None))
    run_batch(bundle, str(archive / "1"), tmp_path / "here", options(frames=None, ray=None))
    same(read(tmp_path / "ray"), read(tmp_path / "here"))


def test_a_killed_node(cluster: Any, bundle: Bundle, archive: Path, uninterrupted: Rows, tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    kill_everything(bundle, archive, tmp_path / "out", cluster, random.Random(seed), nodes=1, rate=0)
    same(read(tmp_path / "out"), uninterrupted)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_three_hundred_clips_with_everything_killed(cluster: Any, bundle: Bundle, tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    chance = random.Random(seed)
    archive = make_archive(tmp_path / "videos", 300)
    run_batch(bundle, str(archive), tmp_path / "whole", options(ray=None))
    whole = read(tmp_path / "whole")
    nodes, killed = kill_everything(bundle, archive, tmp_path / "out", cluster, chance, nodes=3, rate=0.03)
    print(f"nodes killed: {nodes}, workers killed: {killed}")
    same(read(tmp_path / "out"), whole)
    print("drivers killed:", kill_driver(bundle, archive, tmp_path / "driver", cluster.address, chance, times=4))
    same(read(tmp_path / "driver"), whole)


def kill_driver(bundle: Bundle, archive: Path, out: Path, address: str, chance: random.Random, times: int) -> int:
    command = [sys.executable, "-m", "vtn_export", "batch", str(bundle.path), str(archive), "--out", str(out)]
    command += ["--resume", "--ray", address, "--part-rows", "9", "--workers", "2"]
    killed = 0
    for _ in range(times):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = len(list(out.glob(PARTS)))
        while process.poll() is None and len(list(out.glob(PARTS))) == before:
            time.sleep(0.05)
        time.sleep(chance.uniform(0, 2))
        killed += process.poll() is None
        process.kill()
        process.wait()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return killed


def test_ray_that_is_not_there(cli: Cli, bundle: Bundle, archive: Path, tmp_path: Path) -> None:
    """In a process of its own: this one has joined a cluster."""
    arguments = ["batch", bundle.path, archive, "--out", tmp_path / "out", "--ray", "127.0.0.1:1"]
    command = [sys.executable, "-m", "vtn_export", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == errors.BackendError.exit_code, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "127.0.0.1:1" in lines[0] and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_ray_needs_its_extra(cli: Cli, bundle: Bundle, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.data", None)
    refused = cli("batch", bundle.path, archive, "--out", "nowhere", "--ray", "auto")
    assert refused.code == errors.MissingDependencyError.exit_code and "vtn-export[ray]" in refused.err
