"""config.pbtxt: what Triton is told of a model. Text, not protobuf: it is read by people too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtn_export.bundle import LABELS, Bundle
from vtn_export.spec import FEATURES, FRAME_INDEX, FRAMES, LENGTHS, LOGITS, TensorSpec

if TYPE_CHECKING:
    from vtn_export.serve.repository import ServeOptions

_TYPES = {"uint8": "TYPE_UINT8", "int32": "TYPE_INT32", "float32": "TYPE_FP32"}
LAST_FRAME_INDEX = "last_frame_index"
WARMUP_FRAMES = 16
# what a request waits for company at most: 1 ms against tens that a clip takes
_QUEUE_MICROSECONDS = 1000


def model_config(bundle: Bundle, name: str, role: str, options: ServeOptions) -> str:
    """The file's text. role: full, ensemble, stream, or backbone and temporal, an ensemble's parts."""
    if role == "ensemble":
        return _ensemble(bundle, name, options)
    if role == "stream":
        return _stream(bundle, name, options)
    spec = bundle.graph("full" if role == "full" else "temporal").spec
    if role == "backbone":
        frames = bundle.graph("backbone").spec.inputs[0]
        inputs = [_tensor(FRAMES, frames.dtype, [-1, *frames.shape[1:]])]
        outputs = [_tensor(FEATURES, "float32", [-1, bundle.graph("backbone").spec.outputs[0].shape[-1]])]
        warm = [(frames, [WARMUP_FRAMES, *frames.shape[1:]])]
    else:
        inputs = _inputs(spec.inputs, optional=True)
        outputs = [_logits(bundle)]
        warm = [(spec.inputs[0], [WARMUP_FRAMES, *spec.inputs[0].shape[2:]])]
    return "\n".join(
        [
            f'name: "{name}"',
            'backend: "python"',
            f"max_batch_size: {options.max_batch}",
            f"input [\n{_joined(inputs)}\n]",
            f"output [\n{_joined(outputs)}\n]",
            f"dynamic_batching {{ max_queue_delay_microseconds: {_QUEUE_MICROSECONDS} }}",
            _instances(options),
            _warmup(warm),
            _parameters(role, options),
        ]
    )


def _ensemble(bundle: Bundle, name: str, options: ServeOptions) -> str:
    frames = bundle.graph("backbone").spec.inputs[0]
    temporal = bundle.graph("temporal").spec.inputs
    # no optional inputs here: Triton's ensembles pass every tensor on
    inputs = [_tensor(FRAMES, frames.dtype, [-1, *frames.shape[1:]]), *_inputs(temporal[1:], optional=False)]
    return "\n".join(
        [
            f'name: "{name}"',
            'platform: "ensemble"',
            f"max_batch_size: {options.max_batch}",
            f"input [\n{_joined(inputs)}\n]",
            f"output [\n{_logits(bundle)}\n]",
            "ensemble_scheduling {",
            "  step [",
            f'    {{ model_name: "{name}_backbone" model_version: -1',
            f"      {_mapped('input', FRAMES)} {_mapped('output', FEATURES)} }},",
            f'    {{ model_name: "{name}_temporal" model_version: -1',
            f"      {_mapped('input', FEATURES)} {_mapped('input', FRAME_INDEX)} {_mapped('input', LENGTHS)}",
            f"      {_mapped('output', LOGITS)} }}",
            "  ]",
            "}",
            "",
        ]
    )


def _stream(bundle: Bundle, name: str, options: ServeOptions) -> str:
    frames = bundle.graph("backbone").spec.inputs[0]
    classes = bundle.graph("temporal").spec.outputs[0].shape[-1]
    outputs = [_tensor(LOGITS, "float32", [-1, classes]), _tensor(LAST_FRAME_INDEX, "int32", [-1])]
    idle = int(options.idle_seconds * 1e6)

    def control(tensor: str, kind: str) -> str:
        return f'{{ name: "{tensor}" control {{ kind: {kind} int32_false_true: [ 0, 1 ] }} }}'

    return "\n".join(
        [
            f'name: "{name}"',
            'backend: "python"',
            "max_batch_size: 1",
            f"input [\n{_tensor(FRAMES, frames.dtype, [-1, *frames.shape[1:]])}\n]",
            f"output [\n{_joined(outputs)}\n]",
            "sequence_batching {",
            f"  max_sequence_idle_microseconds: {idle}",
            f"  oldest {{ max_candidate_sequences: {options.max_cameras} }}",
            "  control_input [",
            f"    {control('START', 'CONTROL_SEQUENCE_START')},",
            f"    {control('END', 'CONTROL_SEQUENCE_END')},",
            f"    {control('READY', 'CONTROL_SEQUENCE_READY')},",
            '    { name: "CORRID" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } }',
            "  ]",
            "}",
            _instances(options),
            _parameters("stream", options),
        ]
    )


def _inputs(tensors: tuple[TensorSpec, ...], *, optional: bool) -> list[str]:
    """Inputs without their batch axis. lengths has no other: it is `[1]` a clip for the client, a number inside."""
    found = []
    for tensor in tensors:
        may_lack = optional and tensor.name in (FRAME_INDEX, LENGTHS)
        found.append(_tensor(tensor.name, tensor.dtype, [_axis(axis) for axis in tensor.shape[1:]] or [1], may_lack))
    return found


def _axis(axis: int | str) -> int:
    return axis if isinstance(axis, int) else -1


def _tensor(name: str, dtype: str, dims: list[int | str], optional: bool = False) -> str:
    shape = ", ".join(str(_axis(axis)) for axis in dims)
    return f'  {{ name: "{name}" data_type: {_TYPES[dtype]} dims: [ {shape} ]{" optional: true" * optional} }}'


def _logits(bundle: Bundle) -> str:
    part = "temporal" if "temporal" in bundle.manifest.graphs else "full"
    classes = bundle.graph(part).spec.outputs[0].shape[-1]  # type: ignore[arg-type]
    return f'  {{ name: "{LOGITS}" data_type: TYPE_FP32 dims: [ {classes} ] label_filename: "{LABELS}" }}'


def _mapped(side: str, tensor: str) -> str:
    return f'{side}_map {{ key: "{tensor}" value: "{tensor}" }}'


def _joined(tensors: list[str]) -> str:
    return ",\n".join(tensors)


def _instances(options: ServeOptions) -> str:
    kind = "KIND_GPU" if options.backend == "trt" else "KIND_CPU"
    return f"instance_group [ {{ count: {options.instances} kind: {kind} }} ]"


def _warmup(tensors: list[tuple[TensorSpec, list[int | str]]]) -> str:
    inputs = "\n".join(
        f'    inputs {{ key: "{tensor.name}" value {{ data_type: {_TYPES[tensor.dtype]} '
        f"dims: [ {', '.join(str(axis) for axis in dims)} ] zero_data: true }} }}"
        for tensor, dims in tensors
    )
    return f'model_warmup [ {{\n    name: "{WARMUP_FRAMES} frames" batch_size: 1\n{inputs}\n}} ]'


def _parameters(role: str, options: ServeOptions) -> str:
    values = {
        "role": role,
        "backend": options.backend,
        "threads": options.threads or 0,
        "max_frames": options.max_frames,
        "chunk": options.chunk,
    }
    if role == "stream":
        values |= {"window": options.window or 0, "stride": options.stride or 0, "idle_seconds": options.idle_seconds}
    lines = [f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}' for key, value in values.items()]
    return "\n".join([*lines, ""])
