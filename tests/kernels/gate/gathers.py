"""What the lookups of rows are compiled for."""

from __future__ import annotations

from tests.support.triton_gate import Variant
from tokenwire_service.kernels.embed_gather import _triton as embed
from tokenwire_service.kernels.gather_rows import _triton as rows


def variants() -> list[Variant]:
    numbers = dict.fromkeys(("first_id", "num_ids", "num_rows", "width", "table_stride"), "i32")
    types = numbers | {"ids": "*i64", "rows": "*i64", "BLOCK": "constexpr"}
    types |= dict.fromkeys(("table", "x", "out"), "*bf16")
    embed_parameters = ("ids", "table", "out", "first_id", "num_ids", "width", "table_stride", "BLOCK")
    rows_parameters = ("x", "rows", "out", "num_rows", "width", "BLOCK")
    return [
        Variant(
            "embed",
            embed.embed_gather_kernel,
            {name: types[name] for name in embed_parameters},
            {"BLOCK": embed.BLOCK},
            aligned=("ids", "table", "out", "width", "table_stride"),
        ),
        Variant(
            "rows",
            rows.gather_rows_kernel,
            {name: types[name] for name in rows_parameters},
            {"BLOCK": rows.BLOCK},
            aligned=("x", "rows", "out", "width"),
        ),
    ]
