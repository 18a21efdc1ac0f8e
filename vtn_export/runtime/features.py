"""Stored features: what the backbone gave for a video, to be classified later without the video."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vtn_export.bundle import Bundle, writing_file
from vtn_export.errors import BundleError, ShapeError
from vtn_export.spec import Array
from vtn_export.untrusted import open_regular, reason_of

FORMAT = 1
SUFFIX = ".npz"


@dataclass(frozen=True)
class Features:
    """features float32 `[T, E]` in the order of time; frame_index int32 `[T]`, indices in the source video."""

    features: Array
    frame_index: Array
    backbone_fingerprint: str
    source: str

    def save(self, path: Path) -> None:
        """Write atomically. Raises OutputError."""
        with writing_file(path) as temporary, temporary.open("wb") as stream:
            np.savez(
                stream,
                format=np.int32(FORMAT),
                features=self.features,
                frame_index=self.frame_index,
                backbone_fingerprint=np.array(self.backbone_fingerprint),
                source=np.array(self.source),
            )

    @classmethod
    def load(cls, path: Path) -> Features:
        """Raises ShapeError for a file that holds no features, or of a newer format."""
        try:
            with open_regular(path) as stream, np.load(stream, allow_pickle=False) as data:
                version = int(data["format"])
                if version != FORMAT:
                    raise ShapeError(f"features {path}: got format {version}, expected {FORMAT}; update vtn-export")
                result = cls(
                    data["features"],
                    data["frame_index"],
                    str(data["backbone_fingerprint"]),
                    str(data["source"]),
                )
        except FileNotFoundError:
            raise ShapeError(
                f"features {path}: no such file; make it with `vtn-export features BUNDLE VIDEO --out {path}`"
            ) from None
        except (KeyError, ValueError, OSError, EOFError, TypeError, zipfile.BadZipFile, AttributeError) as error:
            raise ShapeError(
                f"features {path}: not a file of `vtn-export features` ({' '.join(reason_of(error).split())[:120]})"
            ) from None
        f, index = result.features, result.frame_index
        if f.dtype != np.float32 or f.ndim != 2 or index.dtype != np.int32 or index.shape != f.shape[:1] or not len(f):
            raise ShapeError(
                f"features {path}: got {f.dtype} {f.shape} with indices {index.dtype} {index.shape}, "
                f"expected float32 (T, E) with int32 (T,)"
            )
        if index.min() < 0:
            raise ShapeError(f"features {path}: got a negative frame index, expected indices in the source video")
        return result

    def require_backbone_of(self, bundle: Bundle) -> None:
        """Raise BundleError unless the bundle's own backbone made these."""
        expected = bundle.manifest.backbone_fingerprint
        if self.backbone_fingerprint != expected:
            raise BundleError(
                f"features of {self.source} were made by backbone {self.backbone_fingerprint[:12]}…, but bundle "
                f"{bundle.path} has {expected[:12]}…; extract them again with `vtn-export features {bundle.path} VIDEO`"
            )
