"""The clip that comes with the package is what its README says."""

from __future__ import annotations

import av
import numpy as np

from vtn_export.video import count_frames, count_packets, decode, probe, shipped_clip


def test_is_what_its_readme_says() -> None:
    path, info = shipped_clip(), probe(shipped_clip())
    assert (info.width, info.height, info.rotation, info.codec) == (480, 270, 0, "h264")
    assert (info.declared_frames, info.average_rate, info.duration) == (75, 25.0, 3.0)
    assert count_frames(path) == count_packets(path) == 75
    size = path.stat().st_size
    assert size < 250_000
    with av.open(str(path)) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        profile, pix_fmt = container.streams.video[0].profile, container.streams.video[0].format.name
        notice = container.metadata["copyright"]
    readme = (path.parent / "README.md").read_text(encoding="utf-8")
    facts = "3 s of *Big Buck Bunny*: 75 frames, 480 × 270, 25 frames/s, H.264"
    for said in (facts, f"{profile}, {pix_fmt}", f"{round(size / 10_000) * 10} KB", "licenses/by/3.0"):
        assert said in readme
    assert "Blender Foundation" in notice and "CC BY 3.0" in notice and "Blender Foundation" in readme


def test_is_a_real_moving_picture() -> None:
    frames = np.stack([frame for _, frame in decode(shipped_clip())]).astype(np.float32)
    assert len(frames) >= 64 and frames.std() > 30
    change = np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3))
    assert (change > 0).all() and change.mean() > 1  # no two frames are the same
