"""Configurations: presets, TOML, PySlowFast's YAML, and one line for everything that is wrong with one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from vtn_export.errors import ConfigError
from vtn_export.model.config import DEFAULT_PRESET, ModelConfig, presets

PUBLISHED = {
    "MODEL": {"ARCH": "VIT", "NUM_CLASSES": 400, "DROPOUT_RATE": 0.5},
    "VTN": {
        "MLP_DIM": 768,
        "HIDDEN_DIM": 768,
        "MAX_POSITION_EMBEDDINGS": 288,
        "NUM_ATTENTION_HEADS": 12,
        "NUM_HIDDEN_LAYERS": 3,
        "ATTENTION_WINDOW": [18, 18, 18],
        "INTERMEDIATE_SIZE": 3072,
        "PAD_TOKEN_ID": -1,
        "ATTENTION_MODE": "sliding_chunks",
        "PRETRAINED": True,
    },
    "DATA": {"NUM_FRAMES": 16, "SAMPLING_RATE": 8, "TARGET_FPS": 25},
    "TRAIN": {"ENABLE": True, "EVAL_NUM_FRAMES": 250},
}


def refused(source: Any) -> str:
    """The message of the ConfigError, which is one line."""
    with pytest.raises(ConfigError) as caught:
        config = ModelConfig.from_any(source)
        config.resolve(config.hidden_dim or 192)
    message = str(caught.value)
    assert "\n" not in message and len(message) > 10
    return message


def test_published_preset() -> None:
    config = ModelConfig.from_any(DEFAULT_PRESET).resolve(768)
    assert config.backbone.name == "vit_base_patch16_224"
    t, p = config.temporal, config.preprocessing
    assert (config.hidden_dim, config.mlp_dim, config.num_classes) == (768, 768, 400)
    assert (t.num_layers, t.num_heads, t.intermediate_size, t.one_sided_window) == (3, 12, 3072, (9, 9, 9))
    assert (t.num_global_tokens, t.causal, t.max_position_embeddings, t.layer_norm_eps) == (1, False, 288, 1e-12)
    assert (p.short_side, p.crop_size, p.mean, p.std, p.num_frames) == (256, 224, (0.45,) * 3, (0.225,) * 3, 250)


def test_pyslowfast_yaml_is_the_preset(tmp_path: Path) -> None:
    path = tmp_path / "VIT_B_VTN.yaml"
    path.write_text(yaml.safe_dump(PUBLISHED))
    config, preset = ModelConfig.from_any(path).resolve(768), ModelConfig.from_any("vit_b_vtn").resolve(768)
    assert config.name == "VIT_B_VTN"
    for field in ("backbone", "temporal", "preprocessing", "hidden_dim", "mlp_dim", "num_classes"):
        assert getattr(config, field) == getattr(preset, field), field


@pytest.mark.parametrize("name", presets())
def test_presets_are_whole(name: str) -> None:
    config = ModelConfig.from_any(name)
    assert config.name == name
    assert ModelConfig.from_dict(config.to_json()) == config
    resolved = config.resolve({"convnext_tiny_vtn": 768, "deit_tiny_vtn": 192, "vit_b_vtn": 768}.get(name, 1280))
    assert ModelConfig.from_dict(resolved.to_json()) == resolved
    assert resolved.hidden_dim == 64 * (resolved.temporal.num_heads or 0)


def test_toml_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        "num_classes = 5\nhidden_dim = 128\n[backbone]\nname = 'resnet18'\n[backbone.options]\nin_chans = 3\n"
        "[temporal]\nnum_layers = 2\none_sided_window = [4, 8]\ndilation = [1, [1, 2]]\ncausal = true\n"
    )
    config = ModelConfig.from_any(path).resolve(512)
    assert config.name == "mine" and config.backbone.options == {"in_chans": 3}
    assert config.temporal.one_sided_window == (4, 8)
    assert config.temporal.dilation == ((1, 1), (1, 2)) and config.temporal.causal


def test_window_and_dilation_short_forms() -> None:
    config = ModelConfig.from_dict({"temporal": {"num_layers": 2, "one_sided_window": 5, "dilation": [1, 3]}})
    resolved = config.resolve(128)
    assert resolved.temporal.one_sided_window == (5, 5)
    assert resolved.temporal.dilation == ((1, 1), (3, 3))


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "window 0": ({"temporal": {"one_sided_window": 0}}, "one_sided_window: got 0, expected at least 1"),
    "window 0 in a layer": ({"temporal": {"one_sided_window": [9, 0, 9]}}, "got 0, expected at least 1"),
    "window negative": ({"temporal": {"one_sided_window": [-3, 1, 1]}}, "got -3"),
    "windows of other layers": ({"temporal": {"one_sided_window": [9, 9]}}, "got 2 widths"),
    "window float": ({"temporal": {"one_sided_window": [9.5, 9, 9]}}, "got 9.5, expected an integer"),
    "window text": ({"temporal": {"one_sided_window": "9"}}, "'9'"),
    "window bool": ({"temporal": {"one_sided_window": True}}, "True"),
    "window nested": ({"temporal": {"one_sided_window": [[9], 9, 9]}}, "one_sided_window"),
    "dilation 0": ({"temporal": {"dilation": 0}}, "dilation: got 0, expected at least 1"),
    "dilation 0 of a head": ({"temporal": {"dilation": [1, 1, [1, 0]]}}, "got 0, expected at least 1"),
    "dilation negative": ({"temporal": {"dilation": [-1, 1, 1]}}, "got -1"),
    "dilation heads": ({"hidden_dim": 128, "temporal": {"dilation": [1, 1, [1, 2, 3]]}}, "got 3 heads"),
    "dilation layers": ({"temporal": {"dilation": [1, 2]}}, "got 2 layers, expected 3"),
    "dilation nested": ({"temporal": {"dilation": [1, 1, [[1], 1]]}}, "dilation"),
    "no layers": ({"temporal": {"num_layers": 0}}, "num_layers: got 0"),
    "no heads": ({"temporal": {"num_heads": 0}}, "num_heads: got 0"),
    "globals negative": ({"temporal": {"num_global_tokens": -1}}, "num_global_tokens: got -1"),
    "too few positions": ({"temporal": {"max_position_embeddings": 2}}, "max_position_embeddings: got 2"),
    "positions below globals": (
        {"temporal": {"num_global_tokens": 5, "max_position_embeddings": 6}},
        "max_position_embeddings: got 6, expected at least 7",
    ),
    "eps 0": ({"temporal": {"layer_norm_eps": 0}}, "layer_norm_eps"),
    "eps nan": ({"temporal": {"layer_norm_eps": math.nan}}, "layer_norm_eps"),
    "causal number": ({"temporal": {"causal": 1}}, "got 1, expected true or false"),
    "unknown key": ({"temporal": {"one_sided_windows": 9}}, "did you mean one_sided_window"),
    "unknown top key": ({"num_class": 4}, "did you mean num_classes"),
    "unknown table key": ({"preprocessing": {"crop": 224}}, "unknown key preprocessing.crop"),
    "width no multiple": ({"hidden_dim": 100}, "100 is no multiple of 64"),
    "width by heads": ({"hidden_dim": 128, "temporal": {"num_heads": 3}}, "cannot be cut into 3 heads"),
    "width 0": ({"hidden_dim": 0}, "hidden_dim: got 0"),
    "classes 0": ({"num_classes": 0}, "num_classes: got 0"),
    "classes text": ({"num_classes": "many"}, "'many', expected an integer"),
    "dropout 1": ({"dropout": 1}, "dropout"),
    "std 0": ({"preprocessing": {"std": [0.2, 0, 0.2]}}, "std"),
    "std nan": ({"preprocessing": {"std": [0.2, math.nan, 0.2]}}, "std"),
    "mean of two": ({"preprocessing": {"mean": [0.4, 0.4]}}, "three numbers"),
    "mean infinite": ({"preprocessing": {"mean": [0.4, 0.4, math.inf]}}, "mean"),
    "crop beyond side": ({"preprocessing": {"crop_size": 300}}, "short_side: got 256, expected at least 300"),
    "crop 0": ({"preprocessing": {"crop_size": 0}}, "crop_size: got 0"),
    "no frames": ({"preprocessing": {"num_frames": 0}}, "num_frames: got 0"),
    "table as number": ({"temporal": 3}, "temporal: got 3, expected a table"),
    "backbone number": ({"backbone": 3}, "backbone"),
    "backbone name number": ({"backbone": {"name": 3}}, "expected a string"),
    "backbone options list": ({"backbone": {"options": [1]}}, "options: got [1], expected a table"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_values(case: str) -> None:
    table, expected = BAD[case]
    assert expected in refused(table)


def test_unknown_preset_and_files(tmp_path: Path) -> None:
    assert "did you mean vit_b_vtn" in refused("vitb_vtn")
    assert "no file" in refused(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("num_classes = = 3\n")
    assert "broken.toml" in refused(broken)
    broken.write_bytes(b"\xff\xfe\x00")
    assert "broken.toml" in refused(broken)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- 1\n- 2\n", "expected PySlowFast's tables"),
        ("VTN: 3\n", "no VTN table"),
        ("MODEL: {ARCH: slowfast}\nVTN: {}\n", "MODEL.ARCH SLOWFAST is not known"),
        ("VTN: {ATTENTION_WINDOW: [18, 17, 18]}\n", "got 17, expected an even width"),
        ("VTN: {ATTENTION_WINDOW: [0, 0, 0]}\n", "got 0, expected an even width"),
        ("VTN: {ATTENTION_WINDOW: 18}\n", "expected a list of even widths"),
        ("VTN: {ATTENTION_WINDOW: [18, 18]}\n", "got 2 widths"),
        ("VTN: {}\nDATA: {TEST_CROP_SIZE: big}\n", "TEST_CROP_SIZE"),
        ("VTN: {}\nDATA: 7\n", "DATA"),
        ("VTN: {}\nMODEL: [1]\n", "MODEL"),
        ("VTN: {}\nTRAIN: yes\n", "TRAIN"),
        ("VTN: [unclosed\n", "config"),
        ("VTN: !!python/object/apply:os.system ['touch pwned']\n", "config"),
    ],
)
def test_bad_yaml(tmp_path: Path, text: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "vtn.yaml"
    path.write_text(text)
    assert expected in refused(path)
    assert not (tmp_path / "pwned").exists()


_leaf = st.none() | st.booleans() | st.integers(-5, 5000) | st.floats() | st.text(max_size=5)
_value = st.recursive(_leaf, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner))


def _paths(table: dict[str, Any]) -> list[tuple[str, ...]]:
    own = [(key,) for key in table]
    return own + [(key, *rest) for key in table if isinstance(table[key], dict) for rest in _paths(table[key])]


def _with(table: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    first, *rest = path
    return {**table, first: _with(table[first], tuple(rest), value) if rest else value}


@given(st.data())
def test_any_value_in_any_field_is_read_or_refused(data: st.DataObject) -> None:
    table = ModelConfig.from_any("deit_tiny_vtn").to_json()
    path = data.draw(st.sampled_from(_paths(table)))
    try:
        config = ModelConfig.from_dict(_with(table, path, data.draw(_value)))
        config.resolve(192)
        config.to_json()
    except ConfigError as error:
        assert "\n" not in str(error)


@given(data=st.data())
def test_any_value_in_yaml_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("yaml") / "vtn.yaml"
    table = {**PUBLISHED, "DATA": {**PUBLISHED["DATA"], "TEST_CROP_SIZE": 224, "MEAN": [0.4] * 3, "STD": [0.2] * 3}}
    changed = _with(table, data.draw(st.sampled_from(_paths(table))), data.draw(_value))
    path.write_text(yaml.safe_dump(changed), encoding="utf-8")
    try:
        ModelConfig.from_any(path).resolve(768)
    except ConfigError as error:
        assert "\n" not in str(error)
