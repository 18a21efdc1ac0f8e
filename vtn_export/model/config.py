"""The configuration of a VTN: presets, own TOML files, PySlowFast's YAML. Torch-free.

A config says everything but the weights. `ModelConfig.from_any` takes whatever a user may hold:
a preset's name, a TOML file, a YAML file of PySlowFast, a dict, or a ModelConfig.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from vtn_export.deps import require
from vtn_export.errors import ConfigError
from vtn_export.spec import Preprocessing

HEAD_DIM = 64  # of the temporal encoder, unless num_heads is configured
PRESET_DIR = Path(__file__).parent / "presets"
DEFAULT_PRESET = "vit_b_vtn"


@dataclass(frozen=True)
class TemporalConfig:
    """The Longformer encoder over the frames' features.

    `one_sided_window` has one width a layer: a row sees that many tokens on either side and itself.
    `dilation` has one gap a head in each layer. Both are given as one number, one a layer, or (for
    dilation) one list of heads a layer. `num_heads` None means heads of 64.
    """

    num_layers: int = 3
    num_heads: int | None = None
    intermediate_size: int = 3072
    one_sided_window: tuple[int, ...] = (9, 9, 9)
    dilation: tuple[tuple[int, ...], ...] | tuple[int, ...] | int = 1
    num_global_tokens: int = 1
    causal: bool = False
    max_position_embeddings: int = 288
    layer_norm_eps: float = 1e-12


@dataclass(frozen=True)
class BackboneConfig:
    """The 2D image network. `name` is a timm model or `module:callable` returning an nn.Module.

    `options` are keyword arguments for it. The network takes float32 `[N, 3, H, W]` and returns
    `[N, feature_dim]`; a network without the attribute `num_features` states `feature_dim` here.
    """

    name: str = "vit_base_patch16_224"
    options: Mapping[str, Any] = field(default_factory=dict)
    feature_dim: int | None = None


@dataclass(frozen=True)
class ModelConfig:
    """A whole VTN. `hidden_dim` None: the temporal width is the backbone's feature size."""

    name: str = "custom"
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    temporal: TemporalConfig = field(default_factory=TemporalConfig)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    hidden_dim: int | None = None
    mlp_dim: int = 768
    num_classes: int = 400
    dropout: float = 0.1

    def resolve(self, feature_dim: int) -> ModelConfig:
        """Fill what depends on the backbone's feature size: width, heads, dilation of every head.

        Raises ConfigError where the width cannot be cut into heads.
        """
        width = self.hidden_dim or feature_dim
        temporal = self.temporal
        heads = temporal.num_heads
        if heads is None:
            if width % HEAD_DIM:
                raise ConfigError(
                    f"temporal width {width} is no multiple of {HEAD_DIM}; set hidden_dim to a multiple "
                    f"of {HEAD_DIM} (a learned projection is put behind the backbone) or num_heads"
                )
            heads = width // HEAD_DIM
        if width % heads:
            raise ConfigError(f"temporal width {width} cannot be cut into {heads} heads of equal size")
        per_head = _dilation_of_heads(temporal.dilation, temporal.num_layers, heads)
        return dataclasses.replace(
            self,
            hidden_dim=width,
            temporal=dataclasses.replace(temporal, num_heads=heads, dilation=per_head),
        )

    @classmethod
    def from_any(cls, source: str | Path | Mapping[str, Any] | ModelConfig) -> ModelConfig:
        """A preset's name, a `.toml` or `.yaml` file, a dict or a ModelConfig. Raises ConfigError."""
        if isinstance(source, ModelConfig):
            return source
        if isinstance(source, Mapping):
            return cls.from_dict(source)
        path = Path(source)
        if path.suffix in (".toml", ".yaml", ".yml"):
            if not path.is_file():
                raise ConfigError(f"config: no file {path}")
            data = _read_toml(path) if path.suffix == ".toml" else _from_pyslowfast(_read_yaml(path), path)
            return cls.from_dict({"name": path.stem, **data})
        name = str(source)
        if name not in presets():
            raise ConfigError(
                f"config: got {name!r}, expected a preset or a .toml/.yaml file{_near(name, presets())}; "
                f"presets: {', '.join(presets())}"
            )
        return cls.from_dict({"name": name, **_read_toml(PRESET_DIR / f"{name}.toml")})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelConfig:
        """Nested tables `backbone`, `temporal`, `preprocessing` and the top-level keys. Raises ConfigError."""
        top = dict(data)
        nested: dict[str, Any] = {}
        for key, kind in (("backbone", BackboneConfig), ("temporal", TemporalConfig), ("preprocessing", Preprocessing)):
            table = top.pop(key, {})
            if isinstance(table, str) and key == "backbone":
                table = {"name": table}
            if not isinstance(table, Mapping):
                raise ConfigError(f"config: {key}: got {table!r}, expected a table")
            nested[key] = _build(kind, table, f"{key}.")
        config: ModelConfig = _build(cls, {**top, **nested}, "")
        _check(config)
        return config

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` reads them back."""
        data = dataclasses.asdict(self)
        data["backbone"]["options"] = dict(self.backbone.options)
        return data


def presets() -> list[str]:
    """Names of the shipped configurations."""
    return sorted(path.stem for path in PRESET_DIR.glob("*.toml"))


def _near(name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, n=3)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def _build(kind: Any, table: Mapping[str, Any], where: str) -> Any:
    """`kind(**table)` with tuples for lists, types checked, unknown keys refused by name."""
    fields = {f.name: f for f in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in fields:
            known = list(fields)
            raise ConfigError(f"config: unknown key {where}{key}{_near(key, known)}; known: {', '.join(known)}")
        if key == "one_sided_window" and isinstance(value, int) and not isinstance(value, bool):
            value = (value,) * _as_int(table.get("num_layers", 3), f"{where}num_layers")
        values[key] = _typed(value, str(fields[key].type), f"{where}{key}")
    return kind(**values)


def _typed(value: Any, annotation: str, where: str) -> Any:
    if annotation in ("int", "int | None"):
        return None if value is None and "None" in annotation else _as_int(value, where)
    if annotation == "float":
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"config: {where}: got {value!r}, expected a number")
        if not abs(value) <= sys.float_info.max:  # TOML and YAML can say nan and inf
            raise ConfigError(f"config: {where}: got {value}, expected a finite number")
        return float(value)
    if annotation.startswith("Mapping") and not isinstance(value, Mapping):
        raise ConfigError(f"config: {where}: got {value!r}, expected a table")
    if annotation == "bool" and not isinstance(value, bool):
        raise ConfigError(f"config: {where}: got {value!r}, expected true or false")
    if annotation == "str" and not isinstance(value, str):
        raise ConfigError(f"config: {where}: got {value!r}, expected a string")
    if annotation.startswith("tuple[float"):
        if not isinstance(value, (list, tuple)) or len(value) != 3:
            raise ConfigError(f"config: {where}: got {value!r}, expected three numbers")
        return tuple(_typed(v, "float", where) for v in value)
    if "tuple" in annotation:
        return _as_ints(value, where)
    return value


def _as_int(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"config: {where}: got {value!r}, expected an integer")
    return value


def _as_ints(value: Any, where: str) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_as_ints(v, where) for v in value)
    return _as_int(value, where)


def _check(config: ModelConfig) -> None:
    """Everything that can be said without the backbone."""
    t, p = config.temporal, config.preprocessing

    def at_least(name: str, value: int | None, low: int) -> None:
        if value is not None and value < low:
            raise ConfigError(f"config: {name}: got {value}, expected at least {low}")

    at_least("temporal.num_layers", t.num_layers, 1)
    at_least("temporal.num_heads", t.num_heads, 1)
    at_least("temporal.intermediate_size", t.intermediate_size, 1)
    at_least("temporal.num_global_tokens", t.num_global_tokens, 0)
    # one row for the padding, one a global token, and at least one for frames
    at_least("temporal.max_position_embeddings", t.max_position_embeddings, 3 + max(t.num_global_tokens - 1, 0))
    at_least("hidden_dim", config.hidden_dim, 1)
    at_least("mlp_dim", config.mlp_dim, 1)
    at_least("num_classes", config.num_classes, 1)
    at_least("backbone.feature_dim", config.backbone.feature_dim, 1)
    at_least("preprocessing.num_frames", p.num_frames, 1)
    at_least("preprocessing.crop_size", p.crop_size, 1)
    at_least("preprocessing.short_side", p.short_side, p.crop_size)
    if min(p.std) <= 0:
        raise ConfigError(f"config: preprocessing.std: got {p.std}, expected values above 0")
    if not 0 <= config.dropout < 1:
        raise ConfigError(f"config: dropout: got {config.dropout}, expected 0 or more and less than 1")
    if t.layer_norm_eps <= 0:
        raise ConfigError(f"config: temporal.layer_norm_eps: got {t.layer_norm_eps}, expected more than 0")
    if len(t.one_sided_window) != t.num_layers:
        raise ConfigError(
            f"config: temporal.one_sided_window: got {len(t.one_sided_window)} widths, "
            f"expected one number or one for each of the {t.num_layers} layers"
        )
    for width in t.one_sided_window:
        if not isinstance(width, int) or width < 1:
            raise ConfigError(f"config: temporal.one_sided_window: got {width}, expected at least 1 on either side")
    _dilation_of_heads(t.dilation, t.num_layers, t.num_heads)


def _dilation_of_heads(
    dilation: tuple[tuple[int, ...], ...] | tuple[int, ...] | int, layers: int, heads: int | None
) -> tuple[tuple[int, ...], ...]:
    """One gap a head a layer, from one number, one a layer, or one list of heads a layer."""
    per_layer = (dilation,) * layers if isinstance(dilation, int) else dilation
    if len(per_layer) != layers:
        raise ConfigError(f"config: temporal.dilation: got {len(per_layer)} layers, expected {layers}")
    result = []
    for gaps in per_layer:
        row = (gaps,) * (heads or 1) if isinstance(gaps, int) else gaps
        if heads is not None and len(row) != heads:
            raise ConfigError(f"config: temporal.dilation: got {len(row)} heads in a layer, expected {heads}")
        for gap in row:
            if not isinstance(gap, int) or gap < 1:
                raise ConfigError(f"config: temporal.dilation: got {gap}, expected at least 1 (1 = no gap)")
        result.append(row)
    return tuple(result)


def _read_toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"config: {path}: {error}") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    yaml = require("yaml")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"config: {path}: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"config: {path}: got {type(data).__name__}, expected PySlowFast's tables")
    return data


# PySlowFast's MODEL.ARCH -> timm name, as the authors' code chooses its backbone
_PYSLOWFAST_BACKBONES = {"VIT": "vit_base_patch16_224"}


def _from_pyslowfast(data: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Translate the authors' YAML. Their ATTENTION_WINDOW is two-sided: 18 means 9 on either side."""

    def table(name: str) -> Mapping[str, Any]:
        value = data.get(name) or {}
        if not isinstance(value, Mapping):
            raise ConfigError(f"config: {path}: {name}: got {value!r}, expected a table")
        return value

    if not isinstance(data.get("VTN"), Mapping):
        raise ConfigError(f"config: {path}: no VTN table; expected a PySlowFast YAML of a VTN")
    vtn, model, clip, train = table("VTN"), table("MODEL"), table("DATA"), table("TRAIN")
    arch = str(model.get("ARCH", "VIT")).upper()
    if arch not in _PYSLOWFAST_BACKBONES:
        raise ConfigError(
            f"config: {path}: MODEL.ARCH {arch} is not known (known: {', '.join(_PYSLOWFAST_BACKBONES)}); "
            f"write a TOML file that names the timm model"
        )
    windows = vtn.get("ATTENTION_WINDOW", [18, 18, 18])
    if not isinstance(windows, list) or not windows or not all(isinstance(w, int) for w in windows):
        raise ConfigError(f"config: {path}: VTN.ATTENTION_WINDOW: got {windows!r}, expected a list of even widths")
    odd = [w for w in windows if w % 2 or w < 2]
    if odd:
        raise ConfigError(f"config: {path}: VTN.ATTENTION_WINDOW: got {odd[0]}, expected an even width of at least 2")
    crop = _as_int(clip.get("TEST_CROP_SIZE", 224), "DATA.TEST_CROP_SIZE")
    preprocessing = {
        "crop_size": crop,
        "short_side": 256 if crop == 224 else round(crop * 256 / 224),
        "num_frames": train.get("EVAL_NUM_FRAMES", 250),
        "mean": clip.get("MEAN", [0.45, 0.45, 0.45]),
        "std": clip.get("STD", [0.225, 0.225, 0.225]),
    }
    return {
        "num_classes": model.get("NUM_CLASSES", 400),
        "mlp_dim": vtn.get("MLP_DIM", 768),
        "hidden_dim": vtn.get("HIDDEN_DIM", 768),
        "dropout": model.get("DROPOUT_RATE", 0.1),
        "backbone": {"name": _PYSLOWFAST_BACKBONES[arch]},
        "temporal": {
            "num_layers": vtn.get("NUM_HIDDEN_LAYERS", 3),
            "num_heads": vtn.get("NUM_ATTENTION_HEADS", 12),
            "intermediate_size": vtn.get("INTERMEDIATE_SIZE", 3072),
            "one_sided_window": [w // 2 for w in windows],
            "max_position_embeddings": vtn.get("MAX_POSITION_EMBEDDINGS", 288),
        },
        "preprocessing": preprocessing,
    }
