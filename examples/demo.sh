#!/usr/bin/env bash
# The main job from end to end, on real videos: compose, export, validate, classify in three ways, build engines.
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$here/demo}
bundle=$out/vtn-bundle
clips=$out/clips
mkdir -p "$out"

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

say "1. Compose three clips: one shape does something over real footage, among others that stand still"
rm -rf "$clips"
python "$here/examples/train/videos.py" --out "$clips" --clips 3 --film "$here/vtn_export/data/clip.mp4"
cat "$clips/labels.csv"

say "2. Export a small trained VTN (a ResNet and two Longformer layers) to a bundle of ONNX graphs"
vtn-export onnx --config moving_shapes --out "$bundle"

say "3. Validate it: hashes, golden samples, the three modes and PyTorch on one of the videos"
first=$(ls "$clips"/0000-*.mp4)
vtn-export validate "$bundle" --video "$first"

say "4. Name what happens in each clip, the whole of it in one look, in three ways"
for clip in "$clips"/*.mp4; do
  name=$(basename "$clip" .mp4)
  vtn-export run "$bundle" "$clip" --mode full
  vtn-export run "$bundle" "$clip" --mode chunked
  vtn-export features "$bundle" "$clip" --out "$out/$name.npz"
  vtn-export run "$bundle" "$out/$name.npz" --mode features
done

if python -c 'import tensorrt_rtx' 2>/dev/null; then
  say "5. Build fp16 engines with TensorRT-RTX: ahead of time, no GPU needed, and none here runs them"
  vtn-export trt "$bundle" --fp16 --flavor rtx
else
  say "5. No TensorRT-RTX for this machine (x86-64 only): no engine is built"
fi

say "Where everything is"
printf '  %-10s %s\n' videos "$clips" bundle "$bundle" engines "$bundle/engines" features "$out/0000-*.npz"
printf '  %-10s %s\n' next "vtn-export inspect $bundle"
