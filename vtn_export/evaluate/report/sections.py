"""Which section holds what, in the order of the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vtn_export.bundle import Bundle
from vtn_export.errors import ExportError
from vtn_export.evaluate.report import accuracy, speed, video
from vtn_export.evaluate.report.page import Section
from vtn_export.evaluate.report.sources import Sources
from vtn_export.evaluate.report.strip import Strip
from vtn_export.trt.sidecar import describe_engines


def sections(sources: Sources, strip: Strip | None) -> list[Section]:
    """Every section; what is missing is said in it, with the reason."""
    found = [_model(sources.bundle)]
    about = Section("video", "A sample video")
    if strip is not None:
        about.charts.append(video.timeline(strip))
    found.append(about)
    checks = Section("accuracy", "Accuracy")
    if sources.validate is not None:
        document = sources.validate
        checks.tables.append(accuracy.table(document))
        checks.charts += accuracy.charts(document)
        how = f"{document['backend']}{', a rounding copy' if document['emulated'] else ''}"
        checks.notes.append(f"{how} against {document['against']}: {'passed' if document['passed'] else 'FAILED'}.")
        checks.notes += [f"Not finite: {one['part']}, first at {one['layer']}." for one in document["not_finite"]]
    found.append(checks)
    if sources.evaluation is not None:
        found.append(_evaluation(sources.evaluation))
    latency = Section("speed", "Speed and memory")
    if sources.bench is not None:
        latency.charts += speed.charts(sources.bench)
        latency.notes += _protocol(sources.bench)
    found.append(latency)
    found.append(_engines(sources.bundle))
    context = Section("context", "Measured on")
    if sources.bench is not None:
        facts = sources.bench["context"]
        context.tables.append(
            ((), [[key, _words(value)] for key, value in facts.items() if value not in (None, [], {})])
        )
        silent = [key for key, value in facts.items() if value in (None, [], {})]
        context.notes.append(f"This machine does not tell: {', '.join(silent) or 'nothing is left out'}.")
    files = [[name, digest] for name, digest in sources.bundle.manifest.files.items()]
    context.tables.append((("file", "SHA-256"), files))
    found.append(context)
    for section in found:
        if section.name in sources.missing:
            section.notes.append(sources.missing[section.name])
    return found


def _model(bundle: Bundle) -> Section:
    manifest = bundle.manifest
    weights, temporal = manifest.weights, manifest.config.get("temporal", {})
    origin = f"RANDOM, seed {weights.get('seed')}" if manifest.random_weights else str(weights.get("checkpoint"))
    p = manifest.preprocessing
    section = Section("model", "Model and graphs")
    rows = [
        ["model", manifest.name],
        ["precision", manifest.precision],
        ["weights", origin],
        ["fingerprint", str(weights.get("fingerprint"))],
        ["backbone", str(manifest.config.get("backbone", {}).get("name", ""))],
        [
            "temporal encoder",
            ", ".join(f"{key.replace('_', ' ')} {_words(temporal[key])}" for key in _TEMPORAL if key in temporal),
        ],
        ["preprocessing", f"shorter side {p.short_side}, crop {p.crop_size}, {p.num_frames} frames a video"],
        ["classes", str(len(bundle.labels()))],
        ["made with", ", ".join(f"{name} {version}" for name, version in manifest.tools.items())],
    ]
    section.tables.append(((), rows))
    costs = {}
    try:
        costs = video.costs(bundle)
        section.charts.append(video.work(bundle, costs))
    except ExportError as error:
        section.notes.append(f"The work could not be counted: {error}")
    graphs = []
    for part, graph in manifest.graphs.items():
        size = sum((bundle.path / name).stat().st_size for name in manifest.files if name.startswith(graph.file))
        ends = "\n".join(["in " + t.describe() for t in graph.spec.inputs])
        ends += "\n" + "\n".join(["out " + t.describe() for t in graph.spec.outputs])
        nodes = str(len(costs[part].nodes)) if part in costs else ""
        bound = f"{graph.measured:.1e} ≤ {graph.tolerance:.1e}"
        graphs.append([part, ends, nodes, f"{size / 1e6:.1f} MB", f"{graph.bytes_per_frame / 1e3:.0f} kB", bound])
    columns = ("graph", "interface", "nodes", "file", "memory a frame", "error ≤ tolerance at export")
    section.tables.append((columns, graphs))
    return section


_TEMPORAL = ("num_layers", "num_heads", "intermediate_size", "one_sided_window", "num_global_tokens")


def _evaluation(document: Mapping[str, Any]) -> Section:
    section = Section("evaluation", "Labelled videos")
    interval = document["top1_interval"]
    between = f" (95 %: {interval[0]:.1%} to {interval[1]:.1%})" if interval and len(interval) == 2 else ""
    top = [
        ["videos", str(document["videos"])],
        ["top-1", "" if document["top1"] is None else f"{document['top1']:.1%}{between}"],
        ["top-5", "" if document["top5"] is None else f"{document['top5']:.1%}"],
    ]
    section.tables.append(((), top))
    if document["videos"]:
        section.charts.append(accuracy.confusion(document))
    return section


def _protocol(document: Mapping[str, Any]) -> list[str]:
    protocol = document["protocol"]
    loads = ", ".join(f"{part} {seconds:.2f} s" for part, seconds in document["load_seconds"].items())
    notes = [
        f"{document['backend']}; every case warmed up, then at least {protocol['min_runs']} runs (videos: a quarter, "
        f"5 at least) and {protocol['duration_seconds']:g} s. Loaded in: {loads}."
    ]
    load = document["context"].get("load_average")
    if isinstance(load, list) and load and isinstance(load[0], (int, float)):
        notes.append(f"Load of the machine when it began: {load[0]:.2f}.")
    return notes


def _engines(bundle: Bundle) -> Section:
    section = Section("engines", "Engines")
    rows = []
    for engine in describe_engines(bundle):
        if "part" not in engine:
            rows.append([engine["name"], "", "", "", "", "", "\n".join(engine["problems"])])
            continue
        build = engine["build"]
        profiles = "\n".join(
            ", ".join(f"{axis} {':'.join(map(str, sizes))}" for axis, sizes in profile.items())
            for profile in engine["profiles"]
        )
        rows.append(
            [
                f"{engine['part']}, {engine['precision']}",
                f"{engine['flavor']} {engine['version']}\n{engine['runs_on']}",
                profiles,
                f"{engine['engine_bytes'] / 1e6:.1f} MB",
                str(build.get("layers", "")),
                f"{build['build_seconds']:.1f} s" if isinstance(build.get("build_seconds"), (int, float)) else "",
                "\n".join(engine["problems"]) or "ok",
            ]
        )
    if rows:
        section.tables.append((("engine", "for", "profiles", "size", "layers", "built in", "state"), rows))
    else:
        section.notes.append(f"None built. Build some with `vtn-export trt {bundle.path}`.")
    return section


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(item)}" for key, item in value.items())
    if isinstance(value, list):
        same = len(value) > 1 and all(item == value[0] for item in value)
        return _words(value[0]) if same else ", ".join(_words(item) for item in value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return "—" if value is None else str(value)
