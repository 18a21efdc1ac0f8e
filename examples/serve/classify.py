"""Classify a video through a Triton server: decode and preprocess here, one request there.

    vtn-export triton vtn-bundle --out models        # once
    tritonserver --model-repository=models           # or: python -m vtn_export.serve.server models
    python examples/serve/classify.py vtn-bundle clip.mp4 --url 127.0.0.1:8000

Needs `pip install vtn-export tritonclient[http,grpc]`. The bundle is read for its preprocessing and labels only.
"""

from __future__ import annotations

import argparse

import numpy as np

from vtn_export.bundle import Bundle
from vtn_export.video import ClipReader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("video")
    parser.add_argument("--url", default="127.0.0.1:8000", help="host:port; 8000 is HTTP, 8001 gRPC")
    parser.add_argument("--grpc", action="store_true")
    parser.add_argument("--model", default="vtn")
    options = parser.parse_args()

    if options.grpc:
        import tritonclient.grpc as triton
    else:
        import tritonclient.http as triton

    bundle = Bundle.open(options.bundle)
    with ClipReader(options.video, bundle.manifest.preprocessing) as reader:
        chunks = list(reader)
    arrays = {
        "frames": np.concatenate([frames for frames, _ in chunks])[None],
        "frame_index": np.concatenate([index for _, index in chunks])[None],
    }
    arrays["lengths"] = np.array([[arrays["frames"].shape[1]]], np.int32)

    inputs = []
    for name, array in arrays.items():
        tensor = triton.InferInput(name, list(array.shape), "UINT8" if name == "frames" else "INT32")
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    with triton.InferenceServerClient(options.url) as client:
        logits = client.infer(options.model, inputs).as_numpy("logits")[0].astype(np.float64)

    weights = np.exp(logits - logits.max())
    labels = bundle.labels()
    for index in np.argsort(-weights)[:5]:
        print(f"{weights[index] / weights.sum():.4f}  {labels[index]}")


if __name__ == "__main__":
    main()
