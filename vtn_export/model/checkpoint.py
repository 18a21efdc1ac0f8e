"""Weights into a model: published `.pyth`, plain state dicts, safetensors; or seeded random ones.

Checkpoints are untrusted input: nothing but tensors and plain containers is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vtn_export.deps import require
from vtn_export.errors import CheckpointError
from vtn_export.model.config import DEFAULT_PRESET, ModelConfig
from vtn_export.model.vtn import VTN
from vtn_export.untrusted import check_regular

# where training frameworks keep the weights inside the file (PySlowFast, Lightning and timm, others)
_WRAPPERS = ("model_state", "state_dict", "model")
# buffers that older transformers versions saved; they hold 0, 1, 2, … and nothing learned
_IGNORED_SUFFIXES = ("position_ids",)
_LISTED = 6  # keys named in an error before "and N more"


def load(checkpoint: str | Path, config: str | Path | Mapping[str, Any] | ModelConfig = DEFAULT_PRESET) -> VTN:
    """The plain model with the checkpoint's weights, in evaluation mode, float32.

    checkpoint: the published `.pyth` layout (weights under `model_state`, with or without `module.`
    before every key), a plain state dict, or safetensors. config: as `ModelConfig.from_any`.
    Raises CheckpointError (missing, truncated, pickled code; missing, unexpected, misshapen or
    not finite keys are listed) and ConfigError.
    """
    state = read_state(checkpoint)
    model = VTN(ModelConfig.from_any(config))
    problems = _differences(state, model.state_dict())
    if problems:
        raise CheckpointError(
            f"checkpoint {checkpoint} does not fit config {model.config.name}: {'; '.join(problems)}; "
            f"choose the config it was trained with"
        )
    model.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in state.items()})
    return model.eval()


def random_model(config: str | Path | Mapping[str, Any] | ModelConfig, seed: int = 0) -> VTN:
    """The plain model with seeded random weights, in evaluation mode. The global generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VTN(ModelConfig.from_any(config))
        nn.init.normal_(model.cls_token, std=0.02)
        for module in model.temporal_encoder.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
    return model.eval()


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file by the model's names. Raises CheckpointError."""
    path = Path(path)
    check_regular(path, "checkpoint", CheckpointError)
    if path.suffix == ".safetensors":
        raw: Any = _read_safetensors(path)
    else:
        raw = _read_pickle(path)
    for wrapper in _WRAPPERS:
        if isinstance(raw, Mapping) and isinstance(raw.get(wrapper), Mapping):
            raw = raw[wrapper]
            break
    if not isinstance(raw, Mapping) or not raw or not all(isinstance(v, Tensor) for v in raw.values()):
        kind = f"keys {sorted(map(str, raw))[:_LISTED]}" if isinstance(raw, Mapping) else type(raw).__name__
        raise CheckpointError(
            f"checkpoint {path}: got {kind}, expected a state dict "
            f"or a file that holds one under {', '.join(_WRAPPERS)}"
        )
    state = {str(key).removeprefix("module."): value for key, value in raw.items()}
    return {key: value for key, value in state.items() if not key.endswith(_IGNORED_SUFFIXES)}


def _read_pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old pickle protocols: nothing that the caller could do
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        with path.open("rb") as stream:
            is_pickle = zipfile.is_zipfile(path) or stream.read(1) == b"\x80"
        if is_pickle and "weights_only" in str(error).lower():
            raise CheckpointError(
                f"checkpoint {path}: holds pickled code, expected tensors only; "
                f"re-save its state dict with torch.save(model.state_dict(), …)"
            ) from None
        # torch's own text is a page about how to load it unsafely
        raise CheckpointError(
            f"checkpoint {path}: not a PyTorch checkpoint, expected .pyth, .pt or .safetensors"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, IndexError) as error:
        # unpicklers answer junk with a bare opcode or key: a number says nothing
        told = "" if isinstance(error, (KeyError, IndexError)) else f" ({_one_line(error)})"
        raise CheckpointError(f"checkpoint {path}: truncated or not a PyTorch checkpoint{told}") from None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    require("safetensors")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path}: truncated or not safetensors ({_one_line(error)})") from None
    return state


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def _differences(got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    def listed(label: str, items: list[str]) -> list[str]:
        more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
        return [f"{len(items)} {label}: {', '.join(items[:_LISTED])}{more}"] if items else []

    misshapen = [
        f"{key} got {tuple(got[key].shape)} expected {tuple(value.shape)}"
        for key, value in expected.items()
        if key in got and got[key].shape != value.shape
    ]
    return [
        *listed("missing", [key for key in expected if key not in got]),
        *listed("unexpected", [key for key in got if key not in expected]),
        *listed("misshapen", misshapen),
        *listed("not finite", [key for key, value in got.items() if key in expected and not _is_finite(value)]),
    ]


def _is_finite(value: Tensor) -> bool:
    """A diverged training run's file has the right keys; every later number would be NaN."""
    return not value.is_floating_point() or bool(torch.isfinite(value).all())


def fingerprint(model: VTN, *, backbone_only: bool) -> str:
    """SHA-256 of the weights (and for the backbone of what its features depend on besides them).

    Two models with equal fingerprints compute the same; stored features carry the backbone's.
    """
    digest = hashlib.sha256()
    config = model.config.to_json()
    p = config["preprocessing"]
    relevant = {
        "backbone": config["backbone"],
        "hidden_dim": config["hidden_dim"],
        "preprocessing": {key: p[key] for key in ("short_side", "crop_size", "mean", "std")},
    }
    if not backbone_only:
        relevant["temporal"] = config["temporal"]
    digest.update(json.dumps(relevant, sort_keys=True).encode())
    for key, value in sorted(model.state_dict().items()):
        if backbone_only and not key.startswith(("backbone.", "projection.")):
            continue
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
