"""The Video Transformer Network: backbone on each frame, Longformer over the features, head on token 0.

`VTN` is the plain form, as published, and the reference. `RewrittenVTN` (`model.rewrite()`) is the
exact rewrite that is exported: same numbers up to rounding, less work.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from vtn_export.errors import ShapeError
from vtn_export.model.backbone import can_prune, create_backbone, prune_vit
from vtn_export.model.config import ModelConfig
from vtn_export.model.rewrite import RewrittenEncoder, twin
from vtn_export.model.temporal import TemporalEncoder
from vtn_export.spec import Preprocessing


class Normalise(nn.Module):
    """uint8 RGB `[N, H, W, 3]` → `(pixel / 255 - mean) / std` as `[N, 3, H, W]` in the model's dtype."""

    mean: Tensor
    scale: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        mean = torch.tensor(preprocessing.mean, dtype=torch.float64).view(3, 1, 1) * 255
        scale = 1 / (torch.tensor(preprocessing.std, dtype=torch.float64).view(3, 1, 1) * 255)
        self.register_buffer("mean", mean.float(), persistent=False)
        self.register_buffer("scale", scale.float(), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        # cast before the transpose: TensorRT-RTX cannot transpose uint8
        return (frames.to(self.mean.dtype).permute(0, 3, 1, 2) - self.mean) * self.scale


class VTNBase(nn.Module):
    """What both forms share: checks, normalisation, tokens, head. Subclasses say how tokens are encoded."""

    backbone: nn.Module
    projection: nn.Module
    cls_token: nn.Parameter
    mlp_head: nn.Module

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.preprocess = Normalise(config.preprocessing)

    @abstractmethod
    def _encode_tokens(self, tokens: Tensor, frame_index: Tensor, lengths: Tensor) -> Tensor:
        """`[B, n + T, E]` → `[B, n + T, E]`; lengths in tokens."""

    @abstractmethod
    def _encode_first(self, tokens: Tensor, frame_index: Tensor, lengths: Tensor) -> Tensor:
        """`[B, n + T, E]` → `[B, E]`: token 0 alone."""

    def frame_features(self, frames: Tensor) -> Tensor:
        """frames: uint8 RGB `[N, H, W, 3]`, or float `[N, 3, H, W]` already normalised. Returns `[N, E]`."""
        if frames.dtype == torch.uint8:
            frames = self.preprocess(frames)
        features: Tensor = self.projection(self.backbone(frames))
        return features

    def features(self, frames: Tensor) -> Tensor:
        """frames: uint8 `[B, T, H, W, 3]` or float `[B, T, 3, H, W]`. Returns `[B, T, E]`. Raises ShapeError."""
        size = self.config.preprocessing.crop_size
        pixels = (size, size, 3) if frames.dtype == torch.uint8 else (3, size, size)
        fits = frames.ndim == 5 and tuple(frames.shape[2:]) == pixels and frames.shape[0] and frames.shape[1]
        if not fits or frames.dtype not in (torch.uint8, self.cls_token.dtype):
            own = str(self.cls_token.dtype).removeprefix("torch.")
            raise ShapeError(
                f"frames: got {frames.dtype} {tuple(frames.shape)}, expected uint8 (B, T, {size}, {size}, 3) "
                f"or {own} (B, T, 3, {size}, {size}) with B and T ≥ 1"
            )
        features = self.frame_features(frames.flatten(0, 1))
        return features.view(frames.shape[0], frames.shape[1], features.shape[-1])

    def encode(self, features: Tensor, frame_index: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        """The temporal encoder's sequence output, global tokens first: `[B, n + T, E]`. Arguments as `classify`."""
        return self._encode_tokens(*self._tokens(features, frame_index, lengths))

    def classify(self, features: Tensor, frame_index: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        """Logits `[B, classes]` of features `[B, T, E]`.

        frame_index: `[B, T]` integers ≥ 0, the frames' indices in the source video (0..T-1 if None);
        lengths: `[B]` valid frames, 1..T (T if None). Raises ShapeError.
        """
        logits: Tensor = self.mlp_head(self._encode_first(*self._tokens(features, frame_index, lengths)))
        return logits

    def forward(self, frames: Tensor, frame_index: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        """Logits `[B, classes]` of frames as `features` takes them; the rest as in `classify`."""
        return self.classify(self.features(frames), frame_index, lengths)

    def _tokens(
        self, features: Tensor, frame_index: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Global tokens in front, defaults filled, lengths in tokens."""
        width, n = self.config.hidden_dim, self.config.temporal.num_global_tokens
        if features.ndim != 3 or features.shape[-1] != width or features.shape[1] == 0:
            raise ShapeError(f"features: got {tuple(features.shape)}, expected (B, T, {width}) with T ≥ 1")
        batch, frames = features.shape[0], features.shape[1]
        if frame_index is None:
            frame_index = torch.arange(frames, device=features.device).expand(batch, -1)
        if lengths is None:
            lengths = torch.full((batch,), frames, dtype=torch.int32, device=features.device)
        if not torch.compiler.is_compiling():
            if batch == 0:
                raise ShapeError(f"features: got {tuple(features.shape)}, expected (B, T, {width}) with B ≥ 1")
            for name, integers in (("frame_index", frame_index), ("lengths", lengths)):
                if integers.is_floating_point() or integers.is_complex():
                    raise ShapeError(f"{name}: got {integers.dtype}, expected integers")
            if tuple(frame_index.shape) != (batch, frames) or int(frame_index.min()) < 0:
                raise ShapeError(
                    f"frame_index: got {tuple(frame_index.shape)}, expected ({batch}, {frames}) of values ≥ 0"
                )
            if tuple(lengths.shape) != (batch,) or int(lengths.min()) < 1 or int(lengths.max()) > frames:
                raise ShapeError(
                    f"lengths: got {lengths.tolist()}, expected {batch} values in 1..{frames} (valid frames)"
                )
        # Padding is no input: whatever stands there (NaN too) must not reach a product with weight 0.
        valid = torch.arange(frames, device=features.device, dtype=torch.int32) < lengths[:, None]
        features = torch.where(valid[..., None], features, torch.zeros_like(features[:1, :1, :1]))
        tokens = torch.cat([self.cls_token.expand(batch, -1, -1), features], dim=1)
        return tokens, frame_index, lengths + n


class VTN(VTNBase):
    """The plain form, as published; parameter names are the published checkpoint's."""

    def __init__(self, config: ModelConfig) -> None:
        backbone, feature_dim = create_backbone(config.backbone, config.preprocessing.crop_size)
        config = config.resolve(feature_dim)
        super().__init__(config)
        width = config.hidden_dim
        assert width is not None
        self.backbone = backbone
        self.projection = nn.Linear(feature_dim, width) if feature_dim != width else nn.Identity()
        self.cls_token = nn.Parameter(torch.zeros(1, config.temporal.num_global_tokens, width))
        self.temporal_encoder = TemporalEncoder(config.temporal, width, config.dropout)
        self.mlp_head = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, config.mlp_dim),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.mlp_dim, config.num_classes),
        )

    def rewrite(self) -> RewrittenVTN:
        """The exact rewrite of these weights, in evaluation mode; this model keeps its own mode.

        Weights that the rewrite does not rearrange are shared: rewrite again after changing them.
        """
        return RewrittenVTN(twin(self)).eval()

    def _encode_tokens(self, tokens: Tensor, frame_index: Tensor, lengths: Tensor) -> Tensor:
        encoded: Tensor = self.temporal_encoder(tokens, frame_index, lengths)
        return encoded

    def _encode_first(self, tokens: Tensor, frame_index: Tensor, lengths: Tensor) -> Tensor:
        return self._encode_tokens(tokens, frame_index, lengths)[:, 0]


class RewrittenVTN(VTNBase):
    """The exact rewrite: last layer for row 0 alone, folded global projections, blocked band, and for
    ViTs that pool by CLS the last block for that row alone. For inference; does not follow training."""

    def __init__(self, model: VTN) -> None:
        super().__init__(model.config)
        self.to(model.cls_token.dtype)
        self.backbone = prune_vit(model.backbone) if can_prune(model.backbone) else model.backbone
        self.projection = model.projection
        self.cls_token = model.cls_token
        self.temporal_encoder = RewrittenEncoder(model.temporal_encoder)
        self.mlp_head = model.mlp_head

    def _encode_tokens(self, tokens: Tensor, frame_index: Tensor, lengths: Tensor) -> Tensor:
        encoded: Tensor = self.temporal_encoder(tokens, frame_index, lengths)
        return encoded

    def _encode_first(self, tokens: Tensor, frame_index: Tensor, lengths: Tensor) -> Tensor:
        return self.temporal_encoder.first(tokens, frame_index, lengths)
