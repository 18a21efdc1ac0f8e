"""The bundle: the folder that an export writes. Files, manifest, hashes, atomic writes.

    DIR/manifest.json   what is in it; never rewritten
    DIR/{full,backbone,temporal}.onnx (+ .onnx.data over 1 GB)
    DIR/labels.txt      one class a line
    DIR/golden.npz      inputs and PyTorch's outputs, for any device to check itself

A bundle is untrusted input: names stay inside the folder, every file's SHA-256 is compared before
it is opened, and the manifest is read field by field.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from vtn_export.errors import BundleError, OutputError
from vtn_export.spec import (
    INPUT_TYPES,
    PARTS,
    PRECISIONS,
    QUANTIZED_PRECISIONS,
    GraphSpec,
    InputType,
    Part,
    Precision,
    Preprocessing,
)
from vtn_export.untrusted import read_json, reason_of, sha256

SCHEMA_VERSION = 1
MANIFEST, LABELS, GOLDEN = "manifest.json", "labels.txt", "golden.npz"
_ENGINES = "engines"  # built from the graphs, beside them, with their own records; not the manifest's


@dataclass(frozen=True)
class GraphEntry:
    """One graph of the bundle: its file, interface, accuracy bound and memory model."""

    file: str
    spec: GraphSpec
    # max|got - ref| / max(1, max|ref|) for fp32, max|got - ref| for 16-bit graphs, over the golden samples
    tolerance: float
    measured: float
    # forecast of activations in bytes: fixed + per_frame · (batch · frames)
    fixed_bytes: int
    bytes_per_frame: int
    # float32 graphs: the tolerance that a 16-bit typing of this graph has to meet, so that a machine without
    # torch can type it; None where PyTorch, rounded to the type, gives no finite number itself
    typed_bounds: Mapping[Precision, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """manifest.json, read and checked."""

    name: str
    precision: Precision
    input_type: InputType
    op_version: int
    preprocessing: Preprocessing
    config: Mapping[str, Any]
    graphs: Mapping[Part, GraphEntry]
    weights: Mapping[str, Any]  # checkpoint's path and hash, or the seed of random weights; fingerprints
    tools: Mapping[str, str]
    files: Mapping[str, str] = field(default_factory=dict)  # name -> SHA-256
    # of int8 and fp8: the source bundle, calibration, layers and accuracy (docs/quantize.md)
    quantization: Mapping[str, Any] | None = None

    @property
    def backbone_fingerprint(self) -> str:
        """Identifies what features depend on; stored with them."""
        return str(self.weights["backbone_fingerprint"])

    @property
    def random_weights(self) -> bool:
        return self.weights.get("checkpoint") is None

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "precision": self.precision,
            "input_type": self.input_type,
            "op": {"domain": "vtn", "name": "SlidingWindowAttention", "version": self.op_version},
            "preprocessing": self.preprocessing.to_json(),
            "config": dict(self.config),
            "graphs": {
                part: {
                    "file": g.file,
                    **g.spec.to_json(),
                    "accuracy": {
                        "tolerance": g.tolerance,
                        "measured": g.measured,
                        "typed_bounds": dict(g.typed_bounds),
                    },
                    "memory": {"fixed_bytes": g.fixed_bytes, "bytes_per_frame": g.bytes_per_frame},
                }
                for part, g in self.graphs.items()
            },
            "weights": dict(self.weights),
            "tools": dict(self.tools),
            **({} if self.quantization is None else {"quantization": dict(self.quantization)}),
            "files": dict(self.files),
        }

    @classmethod
    def from_json(cls, data: Any, where: Path) -> Manifest:
        """Raises BundleError for another schema or a malformed field."""
        if not isinstance(data, dict) or type(data.get("schema_version")) is not int:
            raise BundleError(f"{where}: not a manifest of a bundle (no schema_version)")
        version = data["schema_version"]
        if version != SCHEMA_VERSION:
            remedy = "update vtn-export" if version > SCHEMA_VERSION else "export the bundle again"
            raise BundleError(f"{where}: got schema version {version}, expected {SCHEMA_VERSION}; {remedy}")
        try:
            graphs: dict[Part, GraphEntry] = {}
            for part, entry in data["graphs"].items():
                if part not in PARTS:
                    raise ValueError(f"unknown part {part!r}")
                accuracy, memory = entry["accuracy"], entry["memory"]
                graphs[part] = GraphEntry(
                    file=_plain_name(entry["file"]),
                    spec=GraphSpec.from_json(entry),
                    tolerance=float(accuracy["tolerance"]),
                    measured=float(accuracy["measured"]),
                    fixed_bytes=int(memory["fixed_bytes"]),
                    bytes_per_frame=int(memory["bytes_per_frame"]),
                    typed_bounds=_bounds(accuracy.get("typed_bounds", {})),
                )
            files = {_plain_name(name): str(digest) for name, digest in data["files"].items()}
            precision, input_type = data["precision"], data["input_type"]
            if precision not in PRECISIONS or input_type not in INPUT_TYPES:
                raise ValueError(f"precision {precision!r}, input type {input_type!r}")
            if not graphs or not all(g.file in files for g in graphs.values()):
                raise ValueError("graphs without files")
            if not isinstance(data["weights"]["backbone_fingerprint"], str):
                raise ValueError("backbone_fingerprint")
            quantization = data.get("quantization")
            if (precision in QUANTIZED_PRECISIONS) != isinstance(quantization, dict):
                lacks = "with" if precision not in QUANTIZED_PRECISIONS else "without"
                raise ValueError(f"precision {precision!r} {lacks} a quantization record")
            return cls(
                name=str(data["name"]),
                precision=cast(Precision, precision),
                input_type=cast(InputType, input_type),
                op_version=int(data["op"]["version"]),
                preprocessing=Preprocessing.from_json(data["preprocessing"]),
                config=dict(data["config"]),
                graphs=graphs,
                weights=dict(data["weights"]),
                tools={str(k): str(v) for k, v in data["tools"].items()},
                files=files,
                quantization=quantization,
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise BundleError(f"{where}: malformed manifest ({error!r})") from None


class Bundle:
    """A bundle on disk. `open` reads the manifest; files are compared with it when they are asked for."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._verified: set[str] = set()

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Raises BundleError: no folder, no manifest, another schema, a malformed manifest."""
        path = Path(path)
        try:
            mode = path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError, ValueError):
            raise BundleError(f"bundle {path}: no such folder; make one with `vtn-export onnx --out {path}`") from None
        except OSError as error:
            raise BundleError(f"bundle {path}: cannot be read ({error.strerror})") from None
        if not stat.S_ISDIR(mode):
            raise BundleError(f"bundle {path}: got a file, expected the folder that `vtn-export onnx --out` wrote")
        manifest = path / MANIFEST
        try:
            data = read_json(manifest)
        except FileNotFoundError:
            raise BundleError(f"bundle {path}: no {MANIFEST} in it; expected a folder of `vtn-export onnx`") from None
        except (OSError, ValueError) as error:
            raise BundleError(f"{manifest}: cannot be read ({reason_of(error)})") from None
        return cls(path, Manifest.from_json(data, manifest))

    def file(self, name: str) -> Path:
        """Path of a file of the bundle, its hash compared with the manifest's. Raises BundleError."""
        expected = self.manifest.files.get(name)
        if expected is None:
            raise BundleError(f"bundle {self.path}: no {name} in its manifest; it has {', '.join(self.manifest.files)}")
        path = self.path / name
        if name not in self._verified:
            try:
                got = sha256(path)
            except OSError as error:
                raise BundleError(f"{path}: {error.strerror}; the manifest lists it, export the bundle again") from None
            if got != expected:
                raise BundleError(
                    f"{path}: SHA-256 {got[:12]}… is not the manifest's {expected[:12]}…; "
                    f"the file was changed or damaged, export the bundle again"
                )
            self._verified.add(name)
        return path

    def graph(self, part: Part) -> GraphEntry:
        """Raises BundleError when the bundle was exported without this part."""
        entry = self.manifest.graphs.get(part)
        if entry is None:
            have = ", ".join(self.manifest.graphs)
            raise BundleError(f"bundle {self.path}: no {part} graph (it has {have}); export with --part all")
        return entry

    def graph_path(self, part: Part) -> Path:
        """The ONNX file of a part; external data beside it is compared too."""
        name = self.graph(part).file
        if f"{name}.data" in self.manifest.files:
            self.file(f"{name}.data")
        return self.file(name)

    def labels(self) -> list[str]:
        return self.file(LABELS).read_text(encoding="utf-8").removesuffix("\n").split("\n")

    def verify(self) -> None:
        """Compare every file with the manifest. Raises BundleError."""
        for name in self.manifest.files:
            self.file(name)


def check_target(path: Path) -> None:
    """Raise OutputError unless a bundle may be written there: nothing there, an empty folder, or a bundle."""
    try:
        if path.is_symlink() and not path.exists():
            raise OutputError(f"--out {path}: a broken link; remove it or choose another folder")
        if path.exists() and not path.is_dir():
            raise OutputError(
                f"--out {path}: a file is in the way, expected a folder; remove it or choose another name"
            )
        if path.is_dir() and any(path.iterdir()) and not (path / MANIFEST).is_file():
            raise OutputError(f"--out {path}: the folder is not empty and no bundle; choose another or empty it")
    except OSError as error:
        raise OutputError(f"--out {path}: {error.strerror or error}") from None


@contextmanager
def writing(path: str | Path) -> Iterator[Path]:
    """A folder to write a bundle into; on success it takes the place of `path` in one step.

    If the block raises (Ctrl-C too), what was at `path` stays as it was and nothing else is left.
    Engines of the old bundle are carried over: their own records say which graph they were built from.
    """
    path = Path(path).resolve()
    check_target(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.{os.getpid()}.", dir=path.parent))
    except OSError as error:
        raise OutputError(f"--out {path}: {error.strerror or error}") from None
    try:
        temporary.chmod(0o777 & ~_umask())
        yield temporary
        for item in temporary.iterdir():
            _sync(item)
        _swap(temporary, path)
    except OSError as error:
        raise OutputError(f"writing {path}: {error.strerror or error}; nothing was changed") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Hash every file in `folder` and write manifest.json beside them."""
    files = {item.name: sha256(item) for item in sorted(folder.iterdir())}
    data = {**manifest.to_json(), "files": files}
    (folder / MANIFEST).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def check_file(path: Path, option: str) -> None:
    """Raise OutputError unless a file can be written there: asked before long work. Nothing is left behind."""
    if path.is_dir():
        raise OutputError(f"{option} {path}: a folder is in the way, expected a file name")
    folder = path.absolute().parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"{option} {path}: cannot be written: {folder}: {error.strerror or error}") from None


@contextmanager
def writing_file(path: str | Path) -> Iterator[Path]:
    """A file to write; on success it takes the place of `path` in one step, else nothing is left."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.is_dir():
            raise OutputError(f"{path}: a folder is in the way, expected a file name")
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"writing {path}: {error.strerror or error}; nothing was changed") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _bounds(data: Any) -> dict[Precision, float | None]:
    bounds: dict[Precision, float | None] = {}
    for precision, bound in data.items():
        if precision not in PRECISIONS:
            raise ValueError(f"bound of precision {precision!r}")
        bounds[precision] = None if bound is None else float(bound)
    return bounds


def _plain_name(name: Any) -> str:
    """A file name with no way out of the bundle's folder."""
    if not isinstance(name, str) or not name or name in (".", "..") or {"/", "\\", "\0"} & set(name):
        raise ValueError(f"file name {name!r}")
    return name


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _swap(new: Path, path: Path) -> None:
    """Put `new` at `path` in one step; what was there ends up at `new`."""
    if not path.exists():
        new.rename(path)
    else:
        if (path / _ENGINES).is_dir():
            shutil.copytree(path / _ENGINES, new / _ENGINES, copy_function=os.link)
        if not _exchange(new, path):
            # no atomic exchange on this file system: the old bundle steps aside for one rename
            aside = new.with_name(new.name + ".old")
            path.rename(aside)
            try:
                new.rename(path)
            except BaseException:
                aside.rename(path)
                raise
            shutil.rmtree(aside, ignore_errors=True)
    _sync(path.parent)


def _exchange(a: Path, b: Path) -> bool:
    """renameat2(RENAME_EXCHANGE); False where the system has no such call."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    at_cwd, exchange = -100, 2
    if renameat2(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), exchange) == 0:
        return True
    if ctypes.get_errno() in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _sweep(path: Path) -> None:
    """Remove what killed exports to this path have left behind."""
    # exactly the names that `writing` makes: a running export to `vtn.2` must not look like a dead one to `vtn`
    leftover = re.compile(rf"\.{re.escape(path.name)}\.(\d+)\.[a-z0-9_]{{8}}(\.old)?")
    for item in path.parent.iterdir():
        match = leftover.fullmatch(item.name)
        if match and not Path(f"/proc/{match[1]}").exists() and item.is_dir():
            shutil.rmtree(item, ignore_errors=True)
