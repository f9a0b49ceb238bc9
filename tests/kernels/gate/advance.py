"""What the update of slot state is compiled for."""

from __future__ import annotations

from tests.support.triton_gate import Variant
from tokenwire_service.kernels.advance import _triton


def variants() -> list[Variant]:
    state = dict.fromkeys(("slots", "last_token", "positions", "seq_lens"), "*i32")
    advance = state | {"sampled_ids": "*i64", "token_ids": "*i32", "num_rows": "i32", "max_len": "i32"}
    gather = state | dict.fromkeys(("block_tables", "out_seq_lens", "out_block_tables"), "*i32")
    gather |= dict.fromkeys(("out_input_ids", "out_positions", "out_slot_mapping"), "*i64")
    gather |= {"block_size": "i32", "max_blocks": "i32", "COLUMNS": "constexpr"}
    return [
        Variant("advance", _triton.advance_kernel, advance | {"ROWS": "constexpr"}, {"ROWS": _triton.ROWS}),
        Variant("gather", _triton.gather_decode_inputs_kernel, gather, {"COLUMNS": _triton.COLUMNS}),
    ]
