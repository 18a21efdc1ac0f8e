"""A small model that names colours with a wide margin, and videos for it; made once. Do not write in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.clihelp import cli
from tests.video.make import write
from vtn_export.bundle import Bundle
from vtn_export.video import ClipReader

__all__ = ["cli"]

COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (220, 220, 40), (30, 30, 30), (240, 240, 240)]


def clip(number: int, size: int = 40) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """uint8 `[16, size, size, 3]`: one of six colours, with noise that moves."""
    noise = np.random.default_rng(5).integers(-25, 26, (size, size, 3))
    shifted = [np.roll(noise, (2 + number) * i, axis=1) * (1 + number % 3) for i in range(16)]
    return np.clip(np.array(COLOURS[number % 6]) + np.stack(shifted), 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fp32, all parts. One product of its backbone (`backbone.out`) cannot take 8 bits with a `max` scale.

    Eight classes: the colours, and two that it never names.
    """
    torch = pytest.importorskip("torch", reason="torch makes the bundles that are quantized")
    from tests.model import small
    from vtn_export.onnx.create import create_bundle

    folder = tmp_path_factory.mktemp("source")
    model = small.model(width=64, layers=2, window=4, classes=8, backbone="tests.nets:spiky")
    frames = torch.from_numpy(np.stack([clip(number, 32) for number in range(6)]))
    # The head is solved for, so that a colour's logit is 1 above the rest: what an encoder leaves of a clip differs
    # from run to run (libx264), and rounding may not decide between two classes that are alike.
    last = model.mlp_head[-1]
    with torch.no_grad():
        encoded = model.encode(model.features(frames), torch.arange(16, dtype=torch.int32).expand(6, -1))
        hidden = model.mlp_head[:-1](encoded[:, 0])
        last.weight.zero_()
        last.weight[:6] = torch.linalg.pinv(hidden - hidden.mean(0)).T
        last.bias[:6] = -last.weight[:6] @ hidden.mean(0)
        last.bias[6:] = -1
    weights = folder / "weights.pyth"
    torch.save({"model_state": model.state_dict()}, weights)
    create_bundle(folder / "bundle", checkpoint=weights, config=model.config)
    return folder / "bundle"


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve clips of 16 frames, of six colours with moving noise."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(12):
        write(folder / f"{number:02}.mp4", clip(number))
    return folder


def labelled(bundle: Path, videos: Path, folder: Path) -> Path:
    """The videos in sub-folders by what fp32 names: a set on which it is never wrong."""
    from vtn_export.backends import Sessions
    from vtn_export.runtime.inference import classify_chunked

    opened = Bundle.open(bundle)
    with Sessions(opened) as sessions:
        for path in sorted(videos.iterdir()):
            with ClipReader(path, opened.manifest.preprocessing) as reader:
                found = classify_chunked(sessions["backbone"], sessions["temporal"], reader)
            home = folder / opened.labels()[int(np.argmax(found.logits))]
            home.mkdir(parents=True, exist_ok=True)
            (home / path.name).symlink_to(path)
    return folder
