"""Backbones: any image network of one vector a frame; ViTs pruned only where that is exact."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from tests import oracle
from tests.model import small
from tests.tolerances import tolerance
from vtn_export.errors import ConfigError
from vtn_export.model.backbone import CLSBlock, can_prune, create_backbone, prune_vit
from vtn_export.model.checkpoint import random_model
from vtn_export.model.config import BackboneConfig, ModelConfig
from vtn_export.model.vtn import VTN

TINY = {"embed_dim": 64, "depth": 2, "num_heads": 2, "img_size": 32}

# name, options, whether the last block may be computed for the CLS row alone
VITS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "cls pooled": ("vit_tiny_patch16_224", TINY, True),
    "deit": ("deit_tiny_patch16_224", TINY, True),
    "layer scale, registers": ("vit_small_patch14_reg4_dinov2", {**TINY, "init_values": 0.5}, True),
    "no qkv bias": ("vit_tiny_patch16_224", {**TINY, "qkv_bias": False}, True),
    "pre norm": ("vit_tiny_patch16_224", {**TINY, "pre_norm": True}, True),
    "final norm after pooling": ("vit_tiny_patch16_224", {**TINY, "fc_norm": True, "final_norm": False}, True),
    "one block": ("vit_tiny_patch16_224", {**TINY, "depth": 1}, True),
    "drop rates": ("vit_tiny_patch16_224", {**TINY, "drop_path_rate": 0.3, "proj_drop_rate": 0.2}, True),
    "mean pooled": ("vit_tiny_patch16_224", {**TINY, "global_pool": "avg"}, False),
    "max pooled": ("vit_tiny_patch16_224", {**TINY, "global_pool": "max"}, False),
    "mean pooled, no class token": (
        "vit_tiny_patch16_224",
        {**TINY, "global_pool": "avg", "class_token": False},
        False,
    ),
    "attention pooled": ("vit_tiny_patch16_224", {**TINY, "global_pool": "map"}, False),
    "qk norm": ("vit_tiny_patch16_224", {**TINY, "qk_norm": True}, False),
    "attention norm": ("vit_tiny_patch16_224", {**TINY, "scale_attn_norm": True}, False),
    "distilled": ("deit_tiny_distilled_patch16_224", TINY, False),
    "rotary positions": ("eva02_tiny_patch14_224", {**TINY, "img_size": 28}, False),
    "relative positions": ("beit_base_patch16_224", TINY, False),
    "parallel blocks": ("vit_small_patch16_36x1_224", TINY, True),
    "no blocks": ("vit_tiny_patch16_224", {**TINY, "depth": 0}, False),
}


def _sharpened(backbone: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in backbone.parameters():
            scale = 0.15 if p.ndim > 1 else 0.3
            p.add_(torch.randn(p.shape, generator=generator) * scale)
    return backbone.eval()


@pytest.mark.parametrize("case", VITS)
def test_pruned_only_where_exact(case: str) -> None:
    name, options, exact = VITS[case]
    backbone = _sharpened(timm.create_model(name, num_classes=0, **options))
    assert can_prune(backbone) is exact
    if not exact:
        return
    frames = torch.randn(3, 3, options["img_size"], options["img_size"], generator=torch.Generator().manual_seed(1))
    before = backbone(frames)
    twin = prune_vit(backbone)
    assert isinstance(twin.blocks[-1], CLSBlock)
    assert oracle.error(twin(frames), before) <= tolerance("pruned_vit")
    # the original is as it was
    assert not any(isinstance(module, CLSBlock) for module in backbone.modules())
    assert torch.equal(backbone(frames), before)
    # the last block's MLP sees one row a frame: that is where the saving is
    rows: list[int] = []
    twin.blocks[-1].norm2.register_forward_hook(lambda _m, inputs, _o: rows.append(inputs[0].shape[1]))
    twin(frames)
    assert rows == [1]


@pytest.mark.parametrize("case", ["cls pooled", "mean pooled", "qk norm", "distilled", "attention pooled"])
def test_rewritten_features_are_equal(case: str) -> None:
    name, options, exact = VITS[case]
    own = {key: value for key, value in options.items() if key != "img_size"}
    model = VTN(small.config(backbone=name, options={**own, "img_size": 32}, width=64))
    _sharpened(model.backbone)
    rewritten = model.eval().rewrite()
    assert any(isinstance(module, CLSBlock) for module in rewritten.modules()) is exact
    frames = torch.randint(0, 256, (2, 3, 32, 32, 3), dtype=torch.uint8)
    assert oracle.error(rewritten.features(frames), model.features(frames)) <= tolerance("pruned_vit")


def test_rewrite_leaves_the_model_as_it_was() -> None:
    """Training goes on after an export half-way: dropout stays on, parameters stay its own."""
    model = random_model(small.config(backbone="vit_tiny_patch16_224", options=TINY, width=64)).train()
    modes = {name: module.training for name, module in model.named_modules()}
    rewritten = model.rewrite()
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert not rewritten.training
    features = torch.randn(1, 9, 64)
    assert torch.equal(rewritten.classify(features), rewritten.classify(features))  # no dropout


@pytest.mark.parametrize("name", ["vit_base_patch16_22", "deit_tinny_patch16_224", "resnet5O"])
def test_unknown_name_gets_near_ones(name: str) -> None:
    with pytest.raises(
        ConfigError, match=r"unknown timm model .* \(did you mean .*\)\?; take a name|did you mean"
    ) as caught:
        create_backbone(BackboneConfig(name), 224)
    assert "\n" not in str(caught.value)


BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "no such module": ("no_such_module:make", {}, "no module 'no_such_module'"),
    "no such attribute": ("tests.nets:patchs", {}, "has no 'patchs'"),
    "empty module": (":patches", {}, "expected module:callable"),
    "empty attribute": ("tests.nets:", {}, "expected module:callable"),
    "relative module": (".nets:patches", {}, "expected module:callable"),
    "not a module": ("tests.nets:not_a_module", {}, "returned str, expected a torch.nn.Module"),
    "not callable": ("tests.nets:__doc__", {}, "not callable"),
    "wrong option": ("tests.nets:patches", {"depth": 3}, "unexpected keyword argument 'depth'"),
    "factory fails": ("tests.nets:fails", {}, "the weights are on another disk"),
    "feature map": ("tests.nets:feature_map", {}, "gives (2, 32, 32) for 2 frames, expected (2, features)"),
    "wrong frame size": ("tests.nets:patches", {"patch": 64}, "does not take frames [N, 3, 32, 32]"),
    "timm option": ("resnet18", {"no_option": 1}, "timm cannot build resnet18"),
    "timm option value": ("vit_tiny_patch16_224", {"global_pool": "middle"}, "timm cannot build"),
    "timm heads": ("vit_tiny_patch16_224", {**TINY, "num_heads": 7}, "timm cannot build"),
    "timm feature map": ("resnet18", {"features_only": True}, "gives list for 2 frames"),
    "timm class scores pooled off": ("resnet18", {"global_pool": ""}, "expected (2, features)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_backbones(case: str) -> None:
    name, options, expected = BAD[case]
    with pytest.raises(ConfigError) as caught:
        create_backbone(BackboneConfig(name, options), 32)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_user_module_beside_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_backbone_xyz.py").write_text(
        "import torch\ndef make(width):\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(width))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    config = BackboneConfig("my_backbone_xyz:make", {"width": 20}, feature_dim=20)
    _, width = create_backbone(config, 8)
    assert width == 20


def test_broken_user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_broken_backbone.py").write_text("def make(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(ConfigError, match="my_broken_backbone"):
        create_backbone(BackboneConfig("my_broken_backbone:make"), 32)


@pytest.mark.parametrize(
    ("name", "options", "width"),
    [
        ("test_vit", {"img_size": 64}, 64),
        ("test_resnet", {}, 96),
        ("test_convnext", {}, 64),
        ("tests.nets:patches", {"width": 48}, 48),
    ],
)
def test_width_is_found_by_fake_run(name: str, options: dict[str, Any], width: int) -> None:
    backbone, found = create_backbone(BackboneConfig(name, options), 64)
    assert found == width
    assert backbone.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, width)


def test_width_decides_the_projection() -> None:
    """Temporal width: the feature size in heads of 64, or hidden_dim behind a learned projection."""
    own = VTN(ModelConfig.from_dict({"backbone": "deit_tiny_patch16_224"}))
    assert isinstance(own.projection, nn.Identity) and own.config.hidden_dim == 192
    assert own.config.temporal.num_heads == 3
    base = {"backbone": {"name": "tests.nets:patches"}, "preprocessing": {"crop_size": 32, "short_side": 32}}
    behind = VTN(ModelConfig.from_dict({**base, "hidden_dim": 128}))
    assert isinstance(behind.projection, nn.Linear) and behind.projection.weight.shape == (128, 64)
    with pytest.raises(ConfigError, match="temporal width 48 is no multiple of 64; set hidden_dim"):
        VTN(ModelConfig.from_dict({**base, "backbone": {"name": "tests.nets:patches", "options": {"width": 48}}}))
