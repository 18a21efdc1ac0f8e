"""A model repository for Triton Inference Server, on its Python backend.

    OUT/NAME/config.pbtxt, labels.txt
    OUT/NAME/1/model.py      the adapter (vtn_export/serve/model.py)
    OUT/NAME/1/bundle/       the graphs this model runs, with their manifest
    OUT/NAME/1/vtn_export/   this package's sources, so that the server needs numpy and a runtime, not vtn-export

The sources travel with the model: a repository answers tomorrow as it does today, whatever is installed beside the
server, and two versions of a model can stand next to each other, each with its own code.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vtn_export.backends import Backend, Sessions, require_artefacts
from vtn_export.bundle import LABELS, MANIFEST, Bundle, writing
from vtn_export.errors import OutputError, UsageError
from vtn_export.serve.config import model_config
from vtn_export.spec import Part

Form = Literal["full", "ensemble", "stream"]
VERSION = "1"
_PACKAGE = Path(__file__).parent.parent
# what a server does not need: the command line, torch, the shipped clip
_LEFT_OUT = ("__pycache__", "cli", "model", "data", "evaluate", "quantize", "batch")


@dataclass(frozen=True)
class ServeOptions:
    """`max_batch`: clips the server may put into one call. `max_frames`: of one request, all its clips together;
    what bounds memory. `instances`: processes with a session each. `window`, `stride`: frames, of form `stream`.
    `idle_seconds`: after which a camera that went away without saying so is forgotten."""

    form: Form = "full"
    name: str = "vtn"
    backend: Backend = "ort"
    instances: int = 1
    threads: int | None = None
    max_batch: int = 8
    max_frames: int = 1024
    chunk: int = 16
    window: int | None = None
    stride: int | None = None
    idle_seconds: float = 60.0
    max_cameras: int = 256


def write_repository(bundle: Bundle, out: Path, options: ServeOptions) -> list[str]:
    """Write the repository and return the names of its models. Raises OutputError, BundleError, EngineError."""
    _check(options)
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise OutputError(f"--out {out}: expected nothing there or an empty folder; choose another or empty it")
    models = _models(options)
    parts_of_all = {part for parts in models.values() for part in parts}
    require_artefacts(bundle, options.backend, parts_of_all)
    if options.backend != "trt":  # an engine loads on its own machine only
        with Sessions(bundle, options.backend) as sessions:
            for part in parts_of_all:
                sessions[part].close()
    with writing(out) as folder:
        for name, parts in models.items():
            model = folder / name
            (model / VERSION).mkdir(parents=True)
            shutil.copyfile(bundle.file(LABELS), model / LABELS)
            role = name.removeprefix(options.name).removeprefix("_") or options.form
            (model / "config.pbtxt").write_text(model_config(bundle, name, role, options), encoding="utf-8")
            if parts:
                _write_version(bundle, model / VERSION, parts, options)
            else:
                (model / VERSION / ".keep").write_text("", encoding="utf-8")  # git and rsync drop empty folders
    return list(models)


def _check(options: ServeOptions) -> None:
    if not options.name.isidentifier() or options.name.endswith(("_backbone", "_temporal")):
        raise UsageError(f"--name: got {options.name!r}, expected letters, digits and _")
    for name in ("instances", "max_batch", "max_frames", "chunk", "max_cameras"):
        if (value := getattr(options, name)) < 1:
            raise UsageError(f"--{name.replace('_', '-')}: got {value}, expected at least 1")
    if options.form != "stream" and (options.window or options.stride):
        raise UsageError(f"--window, --stride: got --form {options.form}, expected stream")
    if options.backend == "torch":
        raise UsageError("--backend: got 'torch', expected a backend that serves: ort, openvino or trt")


def _models(options: ServeOptions) -> dict[str, tuple[Part, ...]]:
    """Parts by model."""
    if options.form == "full":
        return {options.name: ("full",)}
    if options.form == "stream":
        return {options.name: ("backbone", "temporal")}
    return {
        options.name: (),
        f"{options.name}_backbone": ("backbone",),
        f"{options.name}_temporal": ("temporal",),
    }


def _write_version(bundle: Bundle, version: Path, parts: tuple[Part, ...], options: ServeOptions) -> None:
    shutil.copyfile(_PACKAGE / "serve" / "model.py", version / "model.py")
    shutil.copytree(_PACKAGE, version / "vtn_export", ignore=shutil.ignore_patterns(*_LEFT_OUT))
    target = version / "bundle"
    target.mkdir()
    wanted = {MANIFEST, LABELS}
    for part in parts:
        path = bundle.graph_path(part)
        wanted |= {name for name in bundle.manifest.files if name.startswith(path.name)}
    for name in sorted(wanted):
        shutil.copyfile(bundle.path / name, target / name)
    if options.backend == "trt":
        shutil.copytree(bundle.path / "engines", target / "engines", copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
