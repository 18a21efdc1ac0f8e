"""The spatial backbone: any 2D image network that gives one vector a frame.

A timm model by name or `module:callable`. `prune_vit` is the exact rewrite for ViTs that pool by
their CLS token: the last block is computed for that row alone.
"""

from __future__ import annotations

import copy
import importlib
import sys
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from vtn_export.deps import require
from vtn_export.errors import ConfigError
from vtn_export.model.attention import row_attention
from vtn_export.model.config import BackboneConfig


def create_backbone(config: BackboneConfig, crop_size: int) -> tuple[nn.Module, int]:
    """Build the network with random weights and find its feature size.

    Returns (module, feature_dim): the module takes float32 `[N, 3, crop, crop]` and gives
    `[N, feature_dim]`. Raises ConfigError for an unknown name, options that do not fit, or another
    output shape.
    """
    backbone = _from_callable(config) if ":" in config.name else _from_timm(config, crop_size)
    feature_dim = config.feature_dim or _feature_dim(backbone, config, crop_size)
    return backbone, feature_dim


def _from_timm(config: BackboneConfig, crop_size: int) -> nn.Module:
    timm = require("timm")
    known = timm.list_models()
    base = config.name.split(".")[0]
    if base not in known:
        near = get_close_matches(base, known, n=3)
        hint = f" (did you mean {', '.join(near)}?)" if near else ""
        raise ConfigError(
            f"backbone: unknown timm model {config.name!r}{hint}; take a name of timm.list_models() or module:callable"
        )
    options = {"pretrained": False, "num_classes": 0, **config.options}
    default = timm.get_pretrained_cfg(base)
    if default is not None and default.fixed_input_size and default.input_size[-1] != crop_size:
        options.setdefault("img_size", crop_size)
    try:
        model: nn.Module = timm.create_model(config.name, **options)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise ConfigError(f"backbone: timm cannot build {config.name} with {options}: {_one_line(error)}") from None
    return model


def _from_callable(config: BackboneConfig) -> nn.Module:
    module_name, _, attribute = config.name.partition(":")
    if not attribute.isidentifier() or not all(part.isidentifier() for part in module_name.split(".")):
        raise ConfigError(f"backbone: got {config.name!r}, expected module:callable, as in my_package.nets:make")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # a user's own module lies beside the command, as with `python -m`
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        raise ConfigError(f"backbone: {config.name}: no module {error.name!r} on the Python path") from None
    except AttributeError:
        raise ConfigError(f"backbone: {config.name}: module {module_name} has no {attribute!r}") from None
    except (ImportError, SyntaxError) as error:
        raise ConfigError(f"backbone: {config.name}: cannot import {module_name}: {_one_line(error)}") from error
    if not callable(factory):
        raise ConfigError(f"backbone: {config.name} is not callable, expected what returns a torch.nn.Module")
    try:
        model = factory(**config.options)
    except Exception as error:  # the user's own code; its traceback stays attached as the cause
        raise ConfigError(f"backbone: {config.name} with {dict(config.options)} failed: {_one_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"backbone: {config.name} returned {type(model).__name__}, expected a torch.nn.Module")
    return model


def _feature_dim(backbone: nn.Module, config: BackboneConfig, crop_size: int) -> int:
    """Run the network on fake tensors: shapes without arithmetic."""
    was_training = backbone.training
    backbone.eval()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            output = backbone(torch.empty(2, 3, crop_size, crop_size))
    except DataDependentOutputException:
        raise ConfigError(
            f"backbone: {config.name}: its control flow depends on the pixels, so it has no graph to export; "
            f"compute both paths and choose with torch.where"
        ) from None
    except Exception as error:
        raise ConfigError(
            f"backbone: {config.name} does not take frames [N, 3, {crop_size}, {crop_size}]: {_one_line(error)}"
        ) from None
    finally:
        backbone.train(was_training)
    if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[0] != 2:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ConfigError(
            f"backbone: {config.name} gives {shape} for 2 frames, expected (2, features): one vector a frame"
        )
    return int(output.shape[1])


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def can_prune(backbone: nn.Module) -> bool:
    """Whether `prune_vit` computes exactly what `backbone` does: timm's own VisionTransformer, pooled
    by CLS, whose last block is the standard one (no k norm, no rotary positions, no attention pool)."""
    try:
        from timm.models.vision_transformer import Attention, Block, VisionTransformer
    except ImportError:  # a user's own backbone needs no timm
        return False
    if type(backbone) is not VisionTransformer or backbone.global_pool != "token" or backbone.attn_pool is not None:
        return False
    if not len(backbone.blocks):
        return False
    block = backbone.blocks[-1]
    return (
        type(block) is Block
        and type(block.attn) is Attention
        and isinstance(block.attn.qkv, nn.Linear)
        and isinstance(block.attn.q_norm, nn.Identity)
        and isinstance(block.attn.k_norm, nn.Identity)
        and isinstance(getattr(block.attn, "norm", nn.Identity()), nn.Identity)
        and getattr(block.attn, "gate", None) is None
    )


class CLSBlock(nn.Module):
    """A timm ViT block for its first row alone: attention, projection and MLP of one token."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        attn = block.get_submodule("attn")
        qkv = attn.get_submodule("qkv")
        heads, dim = int(attn.num_heads), int(attn.head_dim)  # type: ignore[arg-type]
        q_weight, k_weight, v_weight = qkv.get_parameter("weight").detach().chunk(3)
        bias = getattr(qkv, "bias", None)
        q_bias, _, v_bias = (None, None, None) if bias is None else bias.detach().chunk(3)

        def frozen(value: Tensor | None) -> nn.Parameter | None:
            return None if value is None else nn.Parameter(value.clone(), requires_grad=False)

        self.q_weight, self.q_bias = frozen(q_weight), frozen(q_bias)
        self.k_heads = frozen(k_weight.reshape(heads, dim, -1))
        self.v_heads, self.v_bias = frozen(v_weight.reshape(heads, dim, -1)), frozen(v_bias)
        self.norm1, self.norm2 = block.get_submodule("norm1"), block.get_submodule("norm2")
        self.proj, self.mlp = attn.get_submodule("proj"), block.get_submodule("mlp")
        self.ls1, self.ls2 = block.get_submodule("ls1"), block.get_submodule("ls2")

    def forward(self, x: Tensor) -> Tensor:
        """x: `[N, tokens, E]`. Returns `[N, 1, E]`."""
        normed = self.norm1(x)
        assert self.q_weight is not None and self.k_heads is not None and self.v_heads is not None
        mixed = row_attention(
            normed[:, :1], normed, self.q_weight, self.q_bias, self.k_heads, self.v_heads, self.v_bias
        )
        row = x[:, :1] + self.ls1(self.proj(mixed))
        output: Tensor = row + self.ls2(self.mlp(self.norm2(row)))
        return output


def prune_vit(vit: nn.Module) -> nn.Module:
    """A twin of a ViT, sharing its parameters, whose last block is a `CLSBlock`.

    Use it only where `can_prune` says so: pooling by CLS reads nothing but the first row.
    """
    twin = copy.copy(vit)
    twin._modules = dict(vit._modules)  # the shallow copy shares this dict with the original
    blocks = list(vit.get_submodule("blocks").children())
    twin.blocks = nn.Sequential(*blocks[:-1], CLSBlock(blocks[-1]))
    return twin
