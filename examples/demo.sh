#!/usr/bin/env bash
# The main job from end to end, on a real video: export, validate, classify in three ways, build engines.
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$here/demo}
bundle=$out/vtn-bundle
clip=$here/vtn_export/data/clip.mp4
mkdir -p "$out"

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

say "1. Export a small VTN (DeiT-tiny and three Longformer layers) to a bundle of ONNX graphs"
vtn-export onnx --config deit_tiny_vtn --out "$bundle"

say "2. Validate it: hashes, golden samples, the three modes and PyTorch on a real video"
vtn-export validate "$bundle" --video "$clip"

say "3. Classify the video, the whole of it in one look, in three ways"
vtn-export run "$bundle" "$clip" --mode full
vtn-export run "$bundle" "$clip" --mode chunked
vtn-export features "$bundle" "$clip" --out "$out/clip.npz"
vtn-export run "$bundle" "$out/clip.npz" --mode features

if python -c 'import tensorrt_rtx' 2>/dev/null; then
  say "4. Build fp16 engines with TensorRT-RTX: ahead of time, no GPU needed, and none here runs them"
  vtn-export trt "$bundle" --fp16 --flavor rtx
else
  say "4. No TensorRT-RTX for this machine (x86-64 only): no engine is built"
fi

say "Where everything is"
printf '  %-10s %s\n' bundle "$bundle" engines "$bundle/engines" features "$out/clip.npz" video "$clip"
printf '  %-10s %s\n' next "vtn-export inspect $bundle"
