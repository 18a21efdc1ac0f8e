"""The custom op in ONNX: its names, and the function body that lets any runtime compute it.

docs/op.md is the contract. The body is standard ops only, reads every attribute as a tensor, and
works in blocks of queries, so one body serves every window, dilation and head count, and time and
memory are linear in the sequence.
"""

from __future__ import annotations

from functools import lru_cache

import onnx
import onnx.parser

from vtn_export.spec import OP_DOMAIN as OP_DOMAIN
from vtn_export.spec import OP_TYPE as OP_TYPE

OP_VERSION = 1
OPSET = 20  # the first with Gelu as one node; TensorRT 10.3 reads it
IR_VERSION = 10

# Names below: B samples, S tokens, H heads, D head dim, w one-sided window, d dilation, n globals.
# Tokens of one residue modulo d form a sequence in which the band has no gaps; each is cut into
# blocks of queries, and a block sees its own keys and w on either side, behind the n global columns.
_BODY = """
<opset_import: ["" : %(opset)d], domain: "%(domain)s">
%(op)s <num_heads, one_sided_window, dilation, num_global_tokens, causal, scale> (qkv, lengths) => (output)
{
  H = Constant <value_int: int = @num_heads> ()
  w = Constant <value_int: int = @one_sided_window> ()
  d = Constant <value_int: int = @dilation> ()
  n = Constant <value_int: int = @num_global_tokens> ()
  is_causal = Constant <value_int: int = @causal> ()
  factor = Constant <value_float: float = @scale> ()
  zero = Constant <value_int: int = 0> ()
  one = Constant <value_int: int = 1> ()
  three = Constant <value_int: int = 3> ()
  min_block = Constant <value_int: int = 32> ()
  axis0 = Constant <value_ints: ints = [0]> ()
  axis1 = Constant <value_ints: ints = [1]> ()
  axis2 = Constant <value_ints: ints = [2]> ()
  rest = Constant <value_ints: ints = [-1]> ()
  kept1 = Constant <value_ints: ints = [0]> ()
  kept2 = Constant <value_ints: ints = [0, 0]> ()
  open_bias = Constant <value_float: float = 0.0> ()
  shut_bias = Constant <value_float: float = -1e30> ()

  S_1d = Shape <start: int = 1, end: int = 2> (qkv)
  S = Squeeze (S_1d, axis0)
  d_less_1 = Sub (d, one)
  S_up = Add (S, d_less_1)
  residue_length = Div (S_up, d)
  block = Max (w, min_block)
  block_less_1 = Sub (block, one)
  length_up = Add (residue_length, block_less_1)
  blocks = Div (length_up, block)
  all_blocks = Mul (blocks, d)

  c = Range (zero, all_blocks, one)
  residue = Div (c, blocks)
  residue_start = Mul (residue, blocks)
  block_of_residue = Sub (c, residue_start)
  first = Mul (block_of_residue, block)
  first_2d = Unsqueeze (first, axis1)
  residue_2d = Unsqueeze (residue, axis1)

  minus_w = Neg (w)
  keys_end = Add (block, w)
  query_at = Range (zero, block, one)
  key_at = Range (minus_w, keys_end, one)
  query_place = Add (first_2d, query_at)
  key_place = Add (first_2d, key_at)
  query_step = Mul (query_place, d)
  key_step = Mul (key_place, d)
  query_token = Add (query_step, residue_2d)
  key_token = Add (key_step, residue_2d)

  query_at_2d = Unsqueeze (query_at, axis1)
  gap = Sub (key_at, query_at_2d)
  looks_ahead = Sub (one, is_causal)
  max_gap = Mul (w, looks_ahead)
  not_before = GreaterOrEqual (gap, minus_w)
  not_after = LessOrEqual (gap, max_gap)
  in_band = And (not_before, not_after)
  not_global = GreaterOrEqual (key_token, n)

  all_blocks_1d = Unsqueeze (all_blocks, axis0)
  block_1d = Unsqueeze (block, axis0)
  n_1d = Unsqueeze (n, axis0)
  global_token = Range (zero, n, one)
  global_shape = Concat <axis: int = 0> (all_blocks_1d, n_1d)
  global_column = Expand (global_token, global_shape)
  column = Concat <axis: int = 1> (global_column, key_token)
  global_yes = GreaterOrEqual (global_column, zero)
  column_yes = Concat <axis: int = 1> (global_yes, not_global)
  seen_shape = Concat <axis: int = 0> (block_1d, n_1d)
  global_seen = Expand (global_token, seen_shape)
  global_band = GreaterOrEqual (global_seen, zero)
  band = Concat <axis: int = 1> (global_band, in_band)

  lengths_64 = Cast <to: int = 7> (lengths)
  length = Min (lengths_64, S)
  length_2d = Unsqueeze (length, axis1)
  length_3d = Unsqueeze (length_2d, axis2)
  in_length = Less (column, length_3d)
  column_open = And (in_length, column_yes)
  axes13 = Constant <value_ints: ints = [1, 3]> ()
  column_5d = Unsqueeze (column_open, axes13)
  open = And (column_5d, band)
  bias = Where (open, open_bias, shut_bias)

  S_less_1 = Sub (S, one)
  query_low = Min (query_token, S_less_1)
  column_low = Min (column, S_less_1)
  column_in = Max (column_low, zero)

  parts = Mul (H, three)
  parts_1d = Unsqueeze (parts, axis0)
  split_shape = Concat <axis: int = 0> (kept2, parts_1d, rest)
  by_head = Reshape (qkv, split_shape)
  head_first = Transpose <perm: ints = [0, 2, 1, 3]> (by_head)
  D_1d = Shape <start: int = 3, end: int = 4> (head_first)
  flat_shape = Concat <axis: int = 0> (kept1, rest, D_1d)
  flat_qkv = Reshape (head_first, flat_shape)
  H_S = Mul (H, S)
  head = Range (zero, H, one)
  head_row = Mul (head, S)
  axes12 = Constant <value_ints: ints = [1, 2]> ()
  q_row = Unsqueeze (head_row, axes12)
  k_row = Add (q_row, H_S)
  v_row = Add (k_row, H_S)
  q_index = Add (q_row, query_low)
  k_index = Add (k_row, column_in)
  v_index = Add (v_row, column_in)
  q_typed = Gather <axis: int = 1> (flat_qkv, q_index)
  k_typed = Gather <axis: int = 1> (flat_qkv, k_index)
  v_typed = Gather <axis: int = 1> (flat_qkv, v_index)
  q_plain = Cast <to: int = 1> (q_typed)
  k = Cast <to: int = 1> (k_typed)
  v = Cast <to: int = 1> (v_typed)
  q = Mul (q_plain, factor)
  k_t = Transpose <perm: ints = [0, 1, 2, 4, 3]> (k)
  raw_scores = MatMul (q, k_t)
  scores = Add (raw_scores, bias)
  p = Softmax <axis: int = -1> (scores)
  context = MatMul (p, v)

  block_rows = Mul (blocks, block)
  context_shape = Concat <axis: int = 0> (kept2, rest, D_1d)
  block_by_block = Reshape (context, context_shape)
  row = Range (zero, S, one)
  row_place = Div (row, d)
  row_skipped = Mul (row_place, d)
  row_residue = Sub (row, row_skipped)
  row_start = Mul (row_residue, block_rows)
  place = Add (row_start, row_place)
  in_order = Gather <axis: int = 2> (block_by_block, place)
  row_first = Transpose <perm: ints = [0, 2, 1, 3]> (in_order)
  width_shape = Concat <axis: int = 0> (kept2, rest)
  joined = Reshape (row_first, width_shape)
  row_open = Less (row, length_2d)
  row_open_3d = Unsqueeze (row_open, axis2)
  rows_only = Where (row_open_3d, joined, open_bias)
  output = CastLike (rows_only, qkv)
}
"""


@lru_cache(maxsize=1)
def function_proto() -> onnx.FunctionProto:
    """The op's function body; attach a copy to every portable graph."""
    text = _BODY % {"opset": OPSET, "domain": OP_DOMAIN, "op": OP_TYPE}
    return onnx.parser.parse_function(text)


def attach_function(model: onnx.ModelProto) -> onnx.ModelProto:
    """Put the body into `model` (in place) if a node needs it: the portable form. Returns `model`."""
    del model.functions[:]
    if any(node.op_type == OP_TYPE and node.domain == OP_DOMAIN for node in model.graph.node):
        body = onnx.FunctionProto()
        body.CopyFrom(function_proto())
        (version,) = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
        for entry in body.opset_import:
            entry.version = version  # one opset a model; nothing in the body changed since OPSET
        model.functions.append(body)
    return model
