"""`vtn_export.load`: the published layout and its relatives, and everything that can be wrong with a file."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import vtn_export
from tests.model import small
from vtn_export.errors import CheckpointError, ConfigError
from vtn_export.model.checkpoint import fingerprint, random_model
from vtn_export.model.config import ModelConfig
from vtn_export.model.vtn import VTN

# the keys of the published file, as its authors' code names them (12 blocks and 3 layers as there)
VIT = ["backbone.cls_token", "backbone.pos_embed", "backbone.patch_embed.proj.weight", "backbone.patch_embed.proj.bias"]
VIT += [
    f"backbone.blocks.{i}.{name}.{kind}"
    for i in range(12)
    for name in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    for kind in ("weight", "bias")
]
VIT += ["backbone.norm.weight", "backbone.norm.bias"]
EMBEDDINGS = "temporal_encoder.embeddings."
TEMPORAL = [
    "cls_token",
    f"{EMBEDDINGS}position_embeddings.weight",
    f"{EMBEDDINGS}token_type_embeddings.weight",
    f"{EMBEDDINGS}LayerNorm.weight",
    f"{EMBEDDINGS}LayerNorm.bias",
    *(f"mlp_head.{i}.{kind}" for i in (0, 1, 4) for kind in ("weight", "bias")),
]
TEMPORAL += [
    f"temporal_encoder.encoder.layer.{i}.{name}.{kind}"
    for i in range(3)
    for name in (
        *(f"attention.self.{part}{to}" for part in ("query", "key", "value") for to in ("", "_global")),
        "attention.output.dense",
        "attention.output.LayerNorm",
        "intermediate.dense",
        "output.dense",
        "output.LayerNorm",
    )
    for kind in ("weight", "bias")
]


def refused(path: Path, config: Any = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        vtn_export.load(path, config=config or small.config())
    message = str(caught.value)
    assert "\n" not in message and path.name in message
    return message


@pytest.fixture(scope="module")
def model() -> VTN:
    return small.model()


def _published(state: dict[str, Tensor], prefix: str = "") -> dict[str, Any]:
    """What PySlowFast's save_checkpoint writes: the weights beside its own records."""
    keyed = {prefix + key: value for key, value in state.items()}
    keyed[f"{prefix}{EMBEDDINGS}position_ids"] = torch.arange(288)[None]
    return {"epoch": 24, "model_state": keyed, "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.1}]},
            "scaler_state": None, "cfg": "MODEL:\n  ARCH: VIT\n"}  # fmt: skip


def test_names_are_the_published_ones() -> None:
    with torch.device("meta"):
        model = VTN(ModelConfig.from_any("vit_b_vtn"))
    assert set(model.state_dict()) == set(VIT + TEMPORAL)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert shapes["cls_token"] == (1, 1, 768)
    assert shapes[f"{EMBEDDINGS}position_embeddings.weight"] == (288, 768)
    assert shapes[f"{EMBEDDINGS}token_type_embeddings.weight"] == (2, 768)
    assert shapes["temporal_encoder.encoder.layer.2.intermediate.dense.weight"] == (3072, 768)
    assert shapes["mlp_head.4.weight"] == (400, 768)


Writer = Callable[[dict[str, Tensor], Path], None]
LAYOUTS: dict[str, tuple[str, Writer]] = {
    "published": ("w.pyth", lambda s, p: torch.save(_published(s), p)),
    "published, several GPUs": ("w.pyth", lambda s, p: torch.save(_published(s, "module."), p)),
    "published, old file format": (
        "w.pyth",
        lambda s, p: torch.save(_published(s), p, _use_new_zipfile_serialization=False),
    ),
    "plain": ("w.pt", lambda s, p: torch.save(s, p)),
    "state_dict": ("w.ckpt", lambda s, p: torch.save({"state_dict": s, "epoch": 3}, p)),
    "model": ("w.pth", lambda s, p: torch.save({"model": s}, p)),
    "safetensors": ("w.safetensors", lambda s, p: save_file(s, p)),
    "safetensors, module.": ("w.safetensors", lambda s, p: save_file({f"module.{k}": v for k, v in s.items()}, p)),
    "half precision": ("w.pt", lambda s, p: torch.save({k: v.bfloat16().float().bfloat16() for k, v in s.items()}, p)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, model: VTN, tmp_path: Path) -> None:
    name, write = LAYOUTS[layout]
    state = model.state_dict()
    write(state, tmp_path / name)
    loaded = vtn_export.load(tmp_path / name, config=model.config)
    assert isinstance(loaded, VTN) and not loaded.training
    for key, value in loaded.state_dict().items():
        expected = state[key].bfloat16().float() if layout == "half precision" else state[key]
        assert value.dtype == torch.float32 and torch.equal(value, expected), key


def test_published_preset_loads(tmp_path: Path) -> None:
    """The real thing's keys and shapes, with a ViT of two blocks to be quick about it."""
    config = {"backbone": {"name": "vit_base_patch16_224", "options": {"depth": 2}}, "mlp_dim": 768}
    state = random_model(config).state_dict()
    torch.save(_published(state, "module."), tmp_path / "VTN_VIT_B_KINETICS.pyth")
    model = vtn_export.load(tmp_path / "VTN_VIT_B_KINETICS.pyth", config=config)
    frames = torch.randint(0, 256, (1, 3, 224, 224, 3), dtype=torch.uint8)
    logits = model(frames, torch.tensor([[0, 70, 900]]), torch.tensor([2]))
    assert logits.shape == (1, 400) and torch.isfinite(logits).all()
    assert torch.equal(model.classify(model.features(frames)), model(frames))


def test_keys_are_listed(model: VTN, tmp_path: Path) -> None:
    state = dict(model.state_dict())
    del state["mlp_head.4.bias"]
    state["mlp_head.5.bias"] = torch.zeros(3)
    state["cls_token"] = torch.zeros(1, 1, 96)
    torch.save(state, tmp_path / "w.pt")
    message = refused(tmp_path / "w.pt")
    assert "1 missing: mlp_head.4.bias" in message
    assert "1 unexpected: mlp_head.5.bias" in message
    assert "1 misshapen: cls_token got (1, 1, 96) expected (1, 1, 128)" in message


def test_long_lists_are_cut(model: VTN, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pt")
    message = refused(tmp_path / "w.pt")
    assert " more" in message and len(message) < 1500


@pytest.mark.parametrize("change", [{"classes": 11}, {"layers": 2}, {"width": 192}, {"globals_": 2}, {"positions": 64}])
def test_wrong_config(change: dict[str, Any], model: VTN, tmp_path: Path) -> None:
    torch.save(model.state_dict(), tmp_path / "w.pt")
    message = refused(tmp_path / "w.pt", small.config(**change))
    assert "does not fit config small" in message and "choose the config" in message


def test_bad_config_is_told_first(model: VTN, tmp_path: Path) -> None:
    torch.save(model.state_dict(), tmp_path / "w.pt")
    with pytest.raises(ConfigError, match="expected a preset"):
        vtn_export.load(tmp_path / "w.pt", config="no_such_preset")


def test_missing_and_folder(tmp_path: Path) -> None:
    assert "no file" in refused(tmp_path / "none.pyth")
    (tmp_path / "folder.pyth").mkdir()
    assert "no file" in refused(tmp_path / "folder.pyth")


class _Code:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("inside", [True, False])
def test_pickled_code_never_runs(zipped: bool, inside: bool, model: VTN, tmp_path: Path) -> None:
    code = _Code(tmp_path / "pwned")
    content = {"model_state": dict(model.state_dict()), "cfg": code} if inside else code
    torch.save(content, tmp_path / "w.pyth", _use_new_zipfile_serialization=zipped)
    assert "pickled code" in refused(tmp_path / "w.pyth")
    assert not (tmp_path / "pwned").exists()


def test_bare_pickle_never_runs(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(pickle.dumps(_Code(tmp_path / "pwned")))
    refused(tmp_path / "w.pt")
    assert not (tmp_path / "pwned").exists()


def test_whole_pickled_model(model: VTN, tmp_path: Path) -> None:
    torch.save(model, tmp_path / "w.pt")
    assert "torch.save(model.state_dict()" in refused(tmp_path / "w.pt")


@pytest.mark.parametrize("layout", ["published", "published, old file format", "plain", "safetensors"])
def test_truncated_or_damaged(layout: str, tmp_path: Path) -> None:
    """Cut at many places, and bytes turned over near the start: refused, or (a weight's bits) loaded."""
    name, write = LAYOUTS[layout]
    config = small.config(width=64, layers=1)
    write(random_model(config).state_dict(), tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for part in (0, 1, 7, 8, 100, 1000, len(whole) // 2, len(whole) - 100, len(whole) - 1):
        (tmp_path / name).write_bytes(whole[:part])
        refused(tmp_path / name, config)
    for place in [*range(0, 64, 3), *range(64, 3000, 97), *range(len(whole) - 3000, len(whole), 331)]:
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        (tmp_path / name).write_bytes(bytes(damaged))
        try:
            vtn_export.load(tmp_path / name, config=config)
        except CheckpointError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x80", b"PK\x03\x04", b"\x00" * 4096, b"<html>404</html>", b"\x80\x02}q\x00."]
)
@pytest.mark.parametrize("name", ["w.pyth", "w.safetensors"])
def test_not_a_checkpoint(content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name)


@pytest.mark.parametrize(
    "content", [[1, 2], {"model_state": {}}, {"epoch": 3}, {"model_state": {"a": 1}}, torch.zeros(3), {}]
)
def test_no_state_dict_inside(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pyth")
    assert "expected a state dict" in refused(tmp_path / "w.pyth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(value: float, model: VTN, tmp_path: Path) -> None:
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state["mlp_head.1.weight"][3, 4] = value
    torch.save(state, tmp_path / "w.pt")
    assert "not finite: mlp_head.1.weight" in refused(tmp_path / "w.pt")


def test_random_weights_are_seeded() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b, c = (random_model(small.config(), seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert fingerprint(a, backbone_only=False) == fingerprint(b, backbone_only=False)
    assert fingerprint(a, backbone_only=False) != fingerprint(c, backbone_only=False)
    assert a.cls_token.abs().max() > 0


def test_fingerprints() -> None:
    """The backbone's fingerprint follows what features depend on, and nothing else."""
    model = random_model(small.config())
    backbone, whole = (fingerprint(model, backbone_only=only) for only in (True, False))
    model.mlp_head[1].weight[0, 0] += 1
    assert fingerprint(model, backbone_only=True) == backbone
    assert fingerprint(model, backbone_only=False) != whole
    model.projection.weight[0, 0] += 1
    assert fingerprint(model, backbone_only=True) != backbone
    causal = random_model(small.config(causal=True))
    assert fingerprint(causal, backbone_only=True) == backbone
    assert fingerprint(causal, backbone_only=False) != whole
