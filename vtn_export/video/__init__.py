"""Video files in, preprocessed frames out: decode, sample, preprocess. numpy and PyAV only."""

from pathlib import Path

from vtn_export.video.clip import Chunk, ClipReader
from vtn_export.video.decode import VideoInfo, count_frames, count_packets, decode, probe
from vtn_export.video.preprocess import Preprocessor
from vtn_export.video.sample import sample_indices

__all__ = [
    "Chunk",
    "ClipReader",
    "Preprocessor",
    "VideoInfo",
    "count_frames",
    "count_packets",
    "decode",
    "probe",
    "sample_indices",
    "shipped_clip",
]


def shipped_clip() -> Path:
    """The real video that comes with the package: 3 s of Big Buck Bunny (vtn_export/data/README.md)."""
    return Path(__file__).parent.parent / "data" / "clip.mp4"
