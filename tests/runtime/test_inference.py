"""The three modes and stored features, below the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vtn_export.bundle import Bundle
from vtn_export.errors import BundleError, ShapeError
from vtn_export.runtime.features import Features
from vtn_export.runtime.inference import Classification, available_memory, require_memory_for_full


def features(frames: int = 5, width: int = 4) -> Features:
    data = np.arange(frames * width, dtype=np.float32).reshape(frames, width)
    return Features(data, np.arange(frames, dtype=np.int32), "abc", "clip.mp4")


def test_features_come_back_as_stored(tmp_path: Path) -> None:
    stored = features()
    stored.save(tmp_path / "a" / "f.npz")
    read = Features.load(tmp_path / "a" / "f.npz")
    assert np.array_equal(read.features, stored.features) and np.array_equal(read.frame_index, stored.frame_index)
    assert (read.backbone_fingerprint, read.source) == ("abc", "clip.mp4")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["f.npz"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.zeros((5, 4))}, "float64"),
        ({"features": np.zeros((0, 4), np.float32), "frame_index": np.zeros(0, np.int32)}, "expected float32"),
        ({"frame_index": np.zeros(4, np.int32)}, "(4,)"),
        ({"frame_index": np.full(5, -1, np.int32)}, "negative"),
        ({"format": np.int32(9)}, "format 9"),
        ({"features": np.array(["a"], dtype=object)}, "not a file of"),
    ],
)
def test_malformed_features_are_refused(tmp_path: Path, change: dict[str, np.ndarray], message: str) -> None:
    stored = features()
    good = {
        "format": np.int32(1),
        "features": stored.features,
        "frame_index": stored.frame_index,
        "backbone_fingerprint": np.array("abc"),
        "source": np.array("clip.mp4"),
    }
    path = tmp_path / "f.npz"
    np.savez(path, **{**good, **change})
    with pytest.raises(ShapeError, match=message.replace("(", r"\(").replace(")", r"\)")):
        Features.load(path)


def test_probabilities_survive_large_logits() -> None:
    result = Classification(np.array([1e4, -1e4, 1e4], np.float32), np.zeros(1, np.int32))
    assert result.probabilities().tolist() == [0.5, 0.0, 0.5]
    assert result.top(2, ["a", "b", "c"]) == [("a", 0.5), ("c", 0.5)]


def test_available_memory_is_what_the_system_says() -> None:
    free = available_memory()
    assert free is not None and 0 < free <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# Peak memory of one process around one `full` run, beyond what it had before the run.
_MEASURE = """
import sys, resource
import numpy as np
from pathlib import Path
from vtn_export.backends import Sessions
from vtn_export.bundle import Bundle
bundle, frames = Bundle.open(sys.argv[1]), int(sys.argv[2])
def peak():
    return int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1]) * 1024
session = Sessions(bundle)['full']
size = bundle.manifest.preprocessing.crop_size
inputs = dict(frames=np.zeros((1, frames, size, size, 3), np.uint8),
              frame_index=np.zeros((1, frames), np.int32), lengths=np.full(1, frames, np.int32))
before = peak()
session.run(inputs)
print(peak() - before)
"""


def test_memory_forecast_is_near_what_a_run_takes(tmp_path: Path) -> None:
    from vtn_export.onnx.create import create_bundle

    config = {
        "backbone": {"name": "test_resnet", "feature_dim": None},
        "hidden_dim": 64,
        "mlp_dim": 32,
        "num_classes": 5,
        "temporal": {"num_layers": 2, "intermediate_size": 64, "one_sided_window": [4, 4]},
        "preprocessing": {"short_side": 160, "crop_size": 160, "num_frames": 24},
    }
    bundle = create_bundle(tmp_path / "b", config=config, parts=("full",)).bundle
    frames = 400
    command = [sys.executable, "-c", _MEASURE, str(tmp_path / "b"), str(frames)]
    taken = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    forecast = require_memory_for_full(bundle, frames, available=1 << 50)
    # a refusal must be right, and near enough that runs which fit are not refused
    assert 0.4 * forecast <= taken <= forecast, (taken, forecast)


def test_features_must_be_of_the_bundles_backbone(tmp_path: Path) -> None:
    class Other(Bundle):
        def __init__(self) -> None:
            self.path = tmp_path

        class manifest:
            backbone_fingerprint = "def"

    with pytest.raises(BundleError, match="abc"):
        features().require_backbone_of(Other())
