"""`make gpu-check`: on a machine with a GPU, build, validate and time every engine of a bundle; one report.

Each flavour that is installed × each precision × each form (portable, and the plugin where a library
is found) × each part goes through the commands a user has: `trt`, `validate --backend trt`,
`bench --backend trt`. One failure does not end the run; it is a row. Exit 0: everything passed, 1:
something failed (the report says what), 15: no GPU answers here.

    python benchmarks/gpu_check.py [BUNDLE] [--out gpu-check.json]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vtn_export import __version__
from vtn_export.bundle import Bundle, writing_file
from vtn_export.deps import is_installed
from vtn_export.errors import GpuError, VtnError
from vtn_export.evaluate.context import machine_context
from vtn_export.spec import TYPED_PRECISIONS
from vtn_export.trt import api
from vtn_export.trt.gpu import require_gpu
from vtn_export.trt.library import find_library

SCHEMA = "vtn-export/gpu-check"


def cases(bundle: Bundle, compute_capability: str) -> Iterator[tuple[str, str, str]]:
    """(flavour, precision, attention form) of everything this machine can build."""
    have = bundle.manifest.precision
    for flavor in api.FLAVORS:
        if not is_installed(api.MODULE[flavor]):
            continue
        forms = ["portable"]
        if flavor == "tensorrt" and find_library(None, compute_capability, bundle) is not None:
            forms.append("plugin")
        for precision in TYPED_PRECISIONS if have == "fp32" else (have,):
            for form in forms:
                yield flavor, precision, form


def step(command: Sequence[str], *, reads: Path | None = None) -> dict[str, Any]:
    """Run one command; its JSON, or what it said when it failed."""
    start = time.perf_counter()
    result = subprocess.run([sys.executable, "-m", "vtn_export", *command], capture_output=True, text=True, check=False)
    seconds = round(time.perf_counter() - start, 3)
    text = reads.read_text(encoding="utf-8") if reads is not None and reads.is_file() else result.stdout
    try:
        output = json.loads(text)
    except json.JSONDecodeError:
        output = None
    said = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    return {"exit_code": result.returncode, "seconds": seconds, "error": said[-1] if said else None, "output": output}


def check(bundle: Path, flavor: str, precision: str, form: str) -> dict[str, Any]:
    """Build, validate and time one combination in a copy of the bundle without other engines."""
    with tempfile.TemporaryDirectory(prefix="vtn-gpu-check-") as folder:
        copy = Path(folder) / "bundle"
        shutil.copytree(bundle, copy, ignore=shutil.ignore_patterns("engines"))
        timings = Path(folder) / "bench.json"
        row: dict[str, Any] = {"flavor": flavor, "precision": precision, "attention": form}
        options = [f"--{precision}", "--flavor", flavor, "--attention", form, "--json"]
        row["build"] = step(["trt", str(copy), *options])
        if row["build"]["exit_code"] == 0:
            row["validate"] = step(["validate", str(copy), "--backend", "trt", "--json"])
            row["bench"] = step(["bench", str(copy), "--backend", "trt", "--json", str(timings)], reads=timings)
            row["inspect"] = step(["inspect", str(copy), "--json"])
    row["passed"] = all(row[name]["exit_code"] == 0 for name in ("build", "validate", "bench") if name in row)
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description="Build, validate and time every engine of a bundle on this GPU.")
    parser.add_argument("bundle", nargs="?", type=Path, help="default: deit_tiny_vtn, exported here")
    parser.add_argument("--out", type=Path, default=Path("gpu-check.json"))
    arguments = parser.parse_args()
    try:
        gpu = require_gpu()
    except GpuError as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return error.exit_code
    with tempfile.TemporaryDirectory(prefix="vtn-gpu-check-") as folder:
        bundle = arguments.bundle
        if bundle is None:
            bundle = Path(folder) / "bundle"
            made = step(["onnx", "--config", "deit_tiny_vtn", "--out", str(bundle), "--json"])
            if made["exit_code"] != 0:
                print(f"gpu-check: {made['error']}", file=sys.stderr)
                return int(made["exit_code"])
        try:
            planned = list(cases(Bundle.open(bundle), gpu.compute_capability))
        except VtnError as error:
            print(f"gpu-check: {error}", file=sys.stderr)
            return error.exit_code
        rows = []
        for index, (flavor, precision, form) in enumerate(planned, 1):
            print(f"[{index}/{len(planned)}] {flavor} {precision} {form} …", file=sys.stderr)
            rows.append(check(bundle, flavor, precision, form))
            failed = next((s["error"] for s in rows[-1].values() if isinstance(s, dict) and s["exit_code"]), None)
            print(f"    {'passed' if rows[-1]['passed'] else failed}", file=sys.stderr)
    report = {
        "schema": SCHEMA,
        "schema_version": 1,
        "vtn_export": __version__,
        "gpu": gpu.to_json(),
        "context": machine_context(None),
        "passed": bool(rows) and all(row["passed"] for row in rows),
        "rows": rows,
    }
    with writing_file(arguments.out) as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    passed = sum(row["passed"] for row in rows)
    print(f"gpu-check: {passed} of {len(rows)} combinations passed on {gpu.name}; report: {arguments.out}")
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
