"""A camera (here: a video file) as one sequence of a Triton server's stream model: a line every `stride` frames.

    vtn-export triton vtn-bundle --out models --form stream
    tritonserver --model-repository=models           # or: python -m vtn_export.serve.server models
    python examples/serve/camera.py vtn-bundle clip.mp4 --camera 7

Needs `pip install vtn-export tritonclient[grpc]`.
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np
import tritonclient.grpc as triton

from vtn_export.bundle import Bundle
from vtn_export.video import ClipReader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("video")
    parser.add_argument("--url", default="127.0.0.1:8001")
    parser.add_argument("--camera", type=int, default=1, help="the sequence's id, not 0")
    parser.add_argument("--model", default="vtn")
    options = parser.parse_args()

    bundle = Bundle.open(options.bundle)
    labels = bundle.labels()
    with (
        ClipReader(options.video, bundle.manifest.preprocessing, None, chunk=4) as reader,
        triton.InferenceServerClient(options.url) as client,
    ):
        chunks: list[np.ndarray | None] = [None]
        for number, (frames, following) in enumerate(itertools.pairwise(itertools.chain(_frames(reader), chunks))):
            assert frames is not None
            tensor = triton.InferInput("frames", [1, *frames.shape], "UINT8")
            tensor.set_data_from_numpy(frames[None])
            answer = client.infer(
                options.model,
                [tensor],
                sequence_id=options.camera,
                sequence_start=number == 0,
                sequence_end=following is None,  # frees the camera's state at once, not after the idle time
            )
            for index, logits in zip(answer.as_numpy("last_frame_index")[0], answer.as_numpy("logits")[0], strict=True):
                print(f"frame {int(index)}: {labels[int(logits.argmax())]}", flush=True)


def _frames(reader: ClipReader):  # type: ignore[no-untyped-def]
    for frames, _ in reader:
        yield frames


if __name__ == "__main__":
    main()
