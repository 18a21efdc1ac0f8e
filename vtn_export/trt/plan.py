"""From options to one decided build: flavour, GPU, target, precision, profiles, form; refusals come here, early."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vtn_export import __version__
from vtn_export.bundle import Bundle
from vtn_export.deps import is_installed
from vtn_export.errors import GpuError, PluginError, UsageError
from vtn_export.spec import Part, Precision
from vtn_export.trt import api, profile, targets
from vtn_export.trt.gpu import Gpu, find_gpu, require_gpu
from vtn_export.trt.library import find_library
from vtn_export.trt.options import BuildOptions
from vtn_export.trt.plugin_form import RTX_REFUSAL, PluginRecord, record
from vtn_export.trt.profile import Range
from vtn_export.trt.targets import Target
from vtn_export.trt.typed import check_keep_list, resolve_precision
from vtn_export.untrusted import sha256


@dataclass(frozen=True)
class Plan:
    """One part's build, decided. `key` names all that determines the engine."""

    part: Part
    flavor: api.Flavor
    version: str
    gpu: Gpu | None
    target: Target | None
    precision: Precision
    profiles: Sequence[Mapping[str, Range]]
    compute_capabilities: tuple[str, ...]
    plugin: PluginRecord | None
    plugin_path: Path | None
    source_file: str
    source_sha256: str
    options: BuildOptions
    warnings: Sequence[str]

    @property
    def attention(self) -> str:
        return "portable" if self.plugin is None else "plugin"

    @property
    def key(self) -> str:
        """SHA-256 over what determines the engine; what only speeds up its build (a timing cache) is left out."""
        options = self.options
        determined = {
            "vtn-export": __version__,
            "flavor": self.flavor,
            "version": self.version,
            "gpu": None if self.flavor == "rtx" or self.gpu is None else [self.gpu.name, self.gpu.compute_capability],
            "source": self.source_sha256,
            "precision": self.precision,
            "tf32": options.tf32,
            "profiles": [{axis: r.to_json() for axis, r in sorted(p.items())} for p in self.profiles],
            "compute_capabilities": self.compute_capabilities,
            "workspace": options.workspace,
            "opt_level": options.opt_level,
            "keep_fp32": sorted(options.keep_fp32),
            "calibrate": None if options.calibrate is None else sha256(options.calibrate),
            "plugin": None if self.plugin is None else asdict(self.plugin),
        }
        return hashlib.sha256(json.dumps(determined, sort_keys=True).encode()).hexdigest()

    def name(self, key: str) -> str:
        """The engine's file name: readable, and another for every key, so that no build replaces a different one."""
        where = "-".join(f"sm{c.replace('.', '')}" for c in self.compute_capabilities)
        if not where and self.gpu is not None and self.flavor == "tensorrt":
            where = f"sm{self.gpu.compute_capability.replace('.', '')}"
        precision = "tf32" if self.options.tf32 and self.precision == "fp32" else self.precision
        return "-".join(filter(None, [self.part, precision, self.flavor, where, key[:10]]))

    def command(self, bundle: Bundle) -> str:
        """What rebuilds this engine from the shell."""
        o = self.options
        words: list[str] = ["vtn-export", "trt", str(bundle.path), "--part", self.part]
        if o.precision is not None:
            words.append(f"--{o.precision}")
        for axis, ranges in o.profiles.items():
            words += [word for text in ranges if axis in self.profiles[0] for word in (f"--{axis}", text)]
        given: dict[str, Any] = {
            "--flavor": None if o.flavor == "auto" else o.flavor,
            "--attention": None if o.attention == "auto" else o.attention,
            "--target": o.target,
            "--compute-capability": ",".join(o.compute_capabilities) or None,
            "--workspace": o.workspace,
            "--opt-level": o.opt_level,
            "--timing-cache": o.timing_cache,
            "--calibrate": o.calibrate,
            "--plugin": o.plugin,
        }
        words += [word for option, value in given.items() if value is not None for word in (option, str(value))]
        words += ["--keep-fp32", "FILE"] if o.keep_fp32 else []
        words += ["--tf32"] if o.tf32 else []
        return shlex.join([*words, "--force"])


def plans(bundle: Bundle, parts: Sequence[Part], options: BuildOptions) -> list[Plan]:
    """Decide every part's build before the first begins.

    Raises UsageError (options that do not fit), GpuError, MissingDependencyError, PluginError,
    BundleError (no such part).
    """
    parts = tuple(part for part in parts if len(parts) == 1 or part in bundle.manifest.graphs)
    specs = {part: bundle.graph(part).spec for part in parts}
    profile.check_used(specs, options.profiles)
    target = targets.load(options.target) if options.target is not None else None
    precision = resolve_precision(bundle, options.precision)
    if options.tf32 and precision != "fp32":
        raise UsageError(f"--tf32: the engine is {precision}; TF32 is about fp32 products")
    check_keep_list(bundle, parts, options.keep_fp32)
    if target is not None:
        target.check_precision(precision)
    flavor, warnings = _flavor(options, target)
    gpu = _gpu(flavor, options, target)
    if flavor == "rtx" and options.attention == "plugin":
        raise PluginError(RTX_REFUSAL)  # before a parser sees it: it would abort its process
    if flavor == "rtx" and options.timing_cache is not None:
        raise UsageError("--timing-cache: TensorRT-RTX times nothing at build; it is for --flavor tensorrt")
    library = api.load(flavor)
    if not library.has_type(precision):
        raise UsageError(f"--{precision}: {library.title} {library.version} has no {precision}; use another precision")
    if target is not None and target.flavor == flavor:
        target.check_version(library.title, library.version)
        warnings += target.warnings(library.version, precision)
    elif target is not None:
        warnings += target.warnings(None, precision)
    capabilities = _capabilities(library, options, target, gpu, precision)
    found = []
    for part in parts:
        default = {**profile.defaults(part, bundle.manifest.preprocessing)}
        default.update(target.profiles.get(part, {}) if target is not None else {})
        entry = bundle.graph(part)
        plugin_path = None
        if part != "backbone":  # the op is in the temporal encoder
            plugin_path = _plugin(bundle, library, options, gpu)
        found.append(
            Plan(
                part=part,
                flavor=flavor,
                version=library.version,
                gpu=gpu,
                target=target,
                precision=precision,
                profiles=profile.profiles_for(part, entry.spec, default, options.profiles),
                compute_capabilities=capabilities,
                plugin=record(plugin_path) if plugin_path is not None else None,
                plugin_path=plugin_path,
                source_file=entry.file,
                source_sha256=bundle.manifest.files[entry.file],
                options=options,
                warnings=tuple(dict.fromkeys(warnings)),
            )
        )
    return found


def _flavor(options: BuildOptions, target: Target | None) -> tuple[api.Flavor, list[str]]:
    if target is None:
        return api.choose(options.flavor), []
    if options.flavor not in ("auto", target.flavor):
        raise UsageError(f"--flavor {options.flavor}: {target.title} runs engines of --flavor {target.flavor}")
    here = is_installed("tensorrt") and find_gpu() is not None
    if target.flavor == "tensorrt" and options.dry_run and not here and is_installed("tensorrt_rtx"):
        return "rtx", [f"parsed by TensorRT-RTX: TensorRT itself needs to run on {target.title}"]
    if target.flavor == "tensorrt" and find_gpu() is None:
        raise GpuError(
            f"--target {target.name}: TensorRT builds on the device itself and no NVIDIA GPU answers here; "
            f"copy the bundle there and run this command, or try --dry-run here"
        )
    return api.choose(target.flavor), []


def _gpu(flavor: api.Flavor, options: BuildOptions, target: Target | None) -> Gpu | None:
    """The GPU that TensorRT builds for; RTX needs none."""
    if flavor == "rtx":
        return find_gpu()
    gpu = require_gpu()
    wanted = options.compute_capabilities or (target.compute_capabilities if target is not None else ())
    if wanted and gpu.compute_capability not in wanted:
        raise UsageError(
            f"TensorRT builds for the GPU it runs on: got {gpu.name} (SM {gpu.compute_capability}), "
            f"expected SM {', '.join(wanted)}; run this there, or use --flavor rtx for RTX GPUs"
        )
    return gpu


def _capabilities(
    library: api.Api, options: BuildOptions, target: Target | None, gpu: Gpu | None, precision: Precision
) -> tuple[str, ...]:
    if not library.builds_without_gpu:
        found = (gpu.compute_capability,) if gpu is not None else ()
        _check_arithmetic(precision, found, "the GPU of this machine")
        return found
    wanted = list(dict.fromkeys(options.compute_capabilities))
    if target is not None and target.flavor == library.flavor:
        outside = [c for c in wanted if c not in target.compute_capabilities]
        if outside:
            allowed = ", ".join(target.compute_capabilities)
            raise UsageError(f"--compute-capability {outside[0]}: {target.title} are SM {allowed}")
        wanted = wanted or list(target.compute_capabilities)
    api.check_compute_capabilities(library, wanted)
    _check_arithmetic(precision, wanted, "--compute-capability")
    if not wanted and precision == "fp8":  # the library's own choice of GPUs holds some that have no FP8
        wanted = [c for c in library.compute_capabilities if not api.lacks_precision(precision, c)]
    return tuple(wanted)


def _check_arithmetic(precision: Precision, capabilities: Sequence[str], where: str) -> None:
    without = [capability for capability in capabilities if api.lacks_precision(precision, capability)]
    if without:
        raise UsageError(
            f"--{precision}: {where}: SM {without[0]} has no {precision}, expected SM {api.FP8_CAPABILITY} or newer; "
            f"build an int8 or fp16 bundle for it"
        )


def _plugin(bundle: Bundle, library: api.Api, options: BuildOptions, gpu: Gpu | None) -> Path | None:
    """The plugin library to build with, or None for the portable form."""
    if options.attention == "portable" or not library.has_plugins:
        return None
    found = find_library(options.plugin, None if gpu is None else gpu.compute_capability, bundle)
    if found is None and options.attention == "plugin":
        raise PluginError("--attention plugin: no plugin library found; see docs/plugins.md, or give --plugin FILE")
    return found
