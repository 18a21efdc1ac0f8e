"""Names in an exported graph: node and tensor names say which module they come from.

`temporal_encoder.layer.0.attention/MatMul_1` is the second MatMul of that module. Names depend on
the model alone, so they are the same in every part and precision, and a list of node names made
for one fits the others. Exporter metadata (stack traces with local paths) is dropped.
"""

from __future__ import annotations

import ast
from collections import Counter

import onnx

ROOT = "model"  # the attribute under which export.py's wrappers hold the model
SCOPES = "pkg.torch.onnx.name_scopes"


def name_by_module(model: onnx.ModelProto, prefix: str) -> None:
    """Rename nodes, intermediate tensors and initializers in place; inputs and outputs keep theirs.

    prefix: where nodes belong that no module claims (shapes, glue), e.g. "temporal".
    """
    graph = model.graph
    fixed = {value.name for value in (*graph.input, *graph.output)}
    renamed: dict[str, str] = {name: name for name in fixed}
    seen: Counter[str] = Counter()
    for initializer in graph.initializer:
        name = initializer.name
        if name.startswith(f"{ROOT}."):
            renamed[name] = name.removeprefix(f"{ROOT}.")
    for node in graph.node:
        stem = f"{_module_path(node) or prefix}/{node.op_type}"
        node.name = f"{stem}_{seen[stem]}" if seen[stem] else stem
        seen[stem] += 1
        for position, name in enumerate(node.input):
            # a constant that no parameter owns is named after the first node that reads it
            if name and name not in renamed:
                renamed[name] = f"{node.name}.constant_{position}"
        for position, name in enumerate(node.output):
            if name and name not in renamed:
                renamed[name] = f"{node.name}.output" if position == 0 else f"{node.name}.output_{position}"
        del node.metadata_props[:]
        node.doc_string = ""
    for node in graph.node:
        node.input[:] = [renamed[name] if name else "" for name in node.input]
        node.output[:] = [renamed[name] if name else "" for name in node.output]
    for initializer in graph.initializer:
        initializer.name = renamed.get(initializer.name, initializer.name)
        initializer.doc_string = ""
        del initializer.metadata_props[:]
    for value in (*graph.input, *graph.output):
        value.doc_string = ""
        del value.metadata_props[:]
    del graph.value_info[:]
    del graph.metadata_props[:]
    del model.metadata_props[:]
    graph.doc_string = model.doc_string = ""


def _module_path(node: onnx.NodeProto) -> str:
    for entry in node.metadata_props:
        if entry.key == SCOPES:
            scopes = [str(scope) for scope in ast.literal_eval(entry.value)]
            # other entries are names that the exporter gave to what has no module
            modules = [scope for scope in scopes[:-1] if scope.startswith(f"{ROOT}.")]
            return modules[-1].removeprefix(f"{ROOT}.") if modules else ""
    return ""
