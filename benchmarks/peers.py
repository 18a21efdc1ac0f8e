"""The temporal encoder of `vit_b_vtn` as a user would run it otherwise: same weights, same inputs, logits out.

Every peer computes in float32 on the CPU. What does not depend on the features (masks, block masks, position
rows) is made before the clock starts, once a length: to the peers' advantage.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtn_export.model.checkpoint import random_model
from vtn_export.model.config import ModelConfig
from vtn_export.model.temporal import Layer
from vtn_export.model.vtn import VTN
from vtn_export.onnx.export import export_temporal, spec_of
from vtn_export.runtime.session import OrtSession
from vtn_export.spec import FEATURES, FRAME_INDEX, LENGTHS, LOGITS

Run = Callable[[], Any]  # gives the logits `[1, classes]`
TRACED_FRAMES = 250

# name -> what it is, for the table
PEERS = {
    "ort": "ours, ONNX Runtime",
    "openvino": "ours, OpenVINO",
    "hugging_face": "Hugging Face, eager",
    "hugging_face_compiled": "Hugging Face, torch.compile",
    "torchscript_ort": "Hugging Face, TorchScript export on ONNX Runtime",
    "sdpa": "PyTorch SDPA, band mask",
    "flex": "FlexAttention, band block mask",
}
OURS = ("ort", "openvino")
COMPILED = ("hugging_face_compiled", "flex")


def temporal_model(small: bool = False) -> VTN:
    """vit_b_vtn's temporal part (its backbone, which does not run here, with one block); or a small one for tests."""
    data = ModelConfig.from_any("vit_b_vtn").to_json()
    data["backbone"]["options"] = {"depth": 1}
    if small:
        data["hidden_dim"], data["mlp_dim"] = 64, 32
        data["temporal"].update(intermediate_size=64, num_heads=4)
    return random_model(data)


def inputs(model: VTN, frames: int) -> dict[str, Any]:
    """Seeded features of one video, every frame valid, indices 0, 1, …"""
    generator = np.random.default_rng(0)
    features = generator.standard_normal((1, frames, model.config.hidden_dim or 0)).astype(np.float32)
    index = np.arange(frames, dtype=np.int32)[None]
    return {FEATURES: features, FRAME_INDEX: index, LENGTHS: np.array([frames], np.int32)}


def reference(model: VTN, frames: int) -> Any:
    """Logits in float64, of the rewritten model (tests/model hold it to 1e-11 against the published arithmetic)."""
    double = random_model(model.config.to_json())
    double.load_state_dict(model.state_dict())
    features = torch.from_numpy(inputs(model, frames)[FEATURES]).double()
    with torch.inference_mode():
        return double.double().rewrite().classify(features).numpy()


def hugging_face(model: VTN) -> nn.Module:
    """LongformerModel with the same weights and our head on its first row: features `[1, T, E]` → logits."""
    return HuggingFace(model).eval()


def longformer(model: VTN) -> nn.Module:
    """LongformerModel with the temporal encoder's weights; its window is two-sided."""
    from transformers import LongformerConfig, LongformerModel

    t = model.config.temporal
    peer = LongformerModel(
        LongformerConfig(
            vocab_size=4,
            pad_token_id=1,
            hidden_size=model.config.hidden_dim,
            num_hidden_layers=t.num_layers,
            num_attention_heads=t.num_heads,
            intermediate_size=t.intermediate_size,
            attention_window=[2 * w for w in t.one_sided_window],
            max_position_embeddings=t.max_position_embeddings,
            type_vocab_size=2,
            layer_norm_eps=t.layer_norm_eps,
        ),
        add_pooling_layer=False,
    )
    prefix = "temporal_encoder."
    own = {k.removeprefix(prefix): v for k, v in model.state_dict().items() if k.startswith(prefix)}
    missing = peer.load_state_dict(own, strict=False)
    assert not missing.unexpected_keys, missing
    return peer.eval()


class HuggingFace(nn.Module):
    def __init__(self, model: VTN) -> None:
        super().__init__()
        t = model.config.temporal
        self.longformer = longformer(model)
        self.cls_token, self.head = model.cls_token, model.mlp_head
        self.rows = t.max_position_embeddings

    def forward(self, features: Tensor) -> Tensor:
        tokens = torch.cat([self.cls_token, features], dim=1)
        kinds = torch.zeros(tokens.shape[:2], dtype=torch.int64)
        kinds[:, 0] = 1
        at = torch.arange(tokens.shape[1]) - 1
        position = torch.where(at < 0, self.rows - 2, at % (self.rows - 2))[None]
        hidden = self.longformer(
            inputs_embeds=tokens,
            attention_mask=torch.ones_like(kinds),
            global_attention_mask=kinds,
            position_ids=position,
            token_type_ids=kinds.clone(),
        ).last_hidden_state
        return self.head(hidden[:, 0])  # type: ignore[no-any-return]


class Banded(nn.Module):
    """The published layers, whole, around an attention that takes a mask made for one length."""

    def __init__(self, model: VTN, attend: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model, self.attend = model, attend

    def forward(self, features: Tensor, masks: list[Any]) -> Tensor:
        model = self.model
        tokens = torch.cat([model.cls_token, features], dim=1)
        index = torch.arange(features.shape[1])[None]
        x = model.temporal_encoder.embeddings(tokens, index)
        for layer, mask in zip(model.temporal_encoder.encoder["layer"], masks, strict=True):  # type: ignore[arg-type]
            x = self.layer(layer, x, mask)
        return model.mlp_head(x[:, 0])  # type: ignore[no-any-return]

    def layer(self, layer: Layer, x: Tensor, mask: Any) -> Tensor:
        own: Any = layer.attention["self"]

        def heads(name: str, rows: Tensor) -> Tensor:
            return own.get_submodule(name)(rows).unflatten(-1, (own.num_heads, -1)).transpose(1, 2)  # type: ignore[no-any-return]

        local = self.attend(heads("query", x), heads("key", x), heads("value", x), mask)
        row = F.scaled_dot_product_attention(
            heads("query_global", x[:, :1]), heads("key_global", x), heads("value_global", x)
        )
        mixed = torch.cat([row, local[:, :, 1:]], dim=2).transpose(1, 2).flatten(2)
        x = layer.attention["output"](mixed, x)
        return layer.output(F.gelu(layer.intermediate["dense"](x)), x)  # type: ignore[operator, no-any-return]


def _in_band(window: int) -> Callable[..., Tensor]:
    """A mask function: keys within the window on either side, and the global one."""

    def allowed(_batch: Any, _head: Any, query: Tensor, key: Tensor) -> Tensor:
        return ((query - key).abs() <= window) | (key == 0)

    return allowed


def _sdpa(model: VTN, frames: int) -> tuple[nn.Module, list[Any]]:
    at = torch.arange(frames + 1)
    made: dict[int, Tensor] = {}
    for window in model.config.temporal.one_sided_window:
        if window not in made:
            made[window] = _in_band(window)(0, 0, at[:, None], at)
    masks = [made[window] for window in model.config.temporal.one_sided_window]

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    return Banded(model, attend).eval(), masks


def _flex(model: VTN, frames: int) -> tuple[nn.Module, list[Any]]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled = torch.compile(flex_attention)
    tokens = frames + 1
    made: dict[int, Any] = {}
    for window in model.config.temporal.one_sided_window:
        if window not in made:
            made[window] = create_block_mask(_in_band(window), None, None, tokens, tokens, device="cpu")
    masks = [made[window] for window in model.config.temporal.one_sided_window]

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
        return compiled(q, k, v, block_mask=mask)  # type: ignore[no-any-return]

    return Banded(model, attend).eval(), masks


def export_torchscript(model: VTN, path: Path) -> None:
    """What `torch.onnx.export` gives when nobody looks: traced at 250 frames, the axis named dynamic."""
    features = torch.from_numpy(inputs(model, TRACED_FRAMES)[FEATURES])
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            hugging_face(model),
            (features,),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=[FEATURES],
            output_names=[LOGITS],
            dynamic_axes={FEATURES: {1: "frames"}},
        )


class Peers:
    """Makes a peer's run at a length; models and sessions are kept from one length to the next.

    folder: for exported graphs. threads: of our sessions and ONNX Runtime's; PyTorch's are the process's, to be set by
    who owns it.
    """

    def __init__(self, model: VTN, folder: Path, threads: int) -> None:
        self.model, self.folder, self.threads = model, folder, threads
        self._kept: dict[str, Any] = {}

    def run(self, name: str, frames: int) -> Run:
        """What to time. Raises whatever the peer raises when it cannot be made."""
        feed = inputs(self.model, frames)
        if name in OURS:
            session = self._once(name, lambda: self._ours(name))
            return lambda: session.run(feed)[LOGITS]
        if name == "torchscript_ort":
            opened = self._once(name, self._torchscript)
            return lambda: opened.run(None, {FEATURES: feed[FEATURES]})[0]
        features = torch.from_numpy(feed[FEATURES])
        if name in ("sdpa", "flex"):
            module, masks = (_sdpa if name == "sdpa" else _flex)(self.model, frames)
            return _inferring(lambda: module(features, masks))
        peer = self._once("hugging_face", lambda: hugging_face(self.model))
        if name == "hugging_face_compiled":
            peer = self._once(name, lambda: torch.compile(peer))
        return _inferring(lambda: peer(features))

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    def _ours(self, name: str) -> Any:
        rewritten = self.model.rewrite()
        path, spec = self.folder / "temporal.onnx", spec_of(rewritten, "temporal", "uint8")
        if not path.exists():
            onnx.save(export_temporal(rewritten), path)
        if name == "ort":
            return OrtSession(path, spec, threads=self.threads)
        from vtn_export.runtime.openvino import OpenVinoSession

        return OpenVinoSession(path, spec, threads=self.threads)

    def _torchscript(self) -> Any:
        import onnxruntime

        path = self.folder / "torchscript.onnx"
        if not path.exists():
            export_torchscript(self.model, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _inferring(run: Run) -> Run:
    def inner() -> Any:
        with torch.inference_mode():
            return run().numpy()

    return inner
