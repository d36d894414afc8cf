"""Write the graph with which the runtime measures whether this CPU's fast int8 instructions saturate.

    python scripts/make_int8_probe.py siglip_onnx/system/int8_probe.onnx

One product of ones with weights of 127, whose sums of two products exceed 16 bits: an instruction that adds them in
16 bits gives about half the true result.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import onnx_ir as ir

from siglip_onnx.export.graph import IR_VERSION, MICROSOFT, OPSET, graph_input

ROWS, DEPTH, COLUMNS = 4, 32, 16


@click.command(help=__doc__)
@click.argument("out", type=click.Path(path_type=Path))
def main(out: Path) -> None:
    """Write the graph."""
    ir.save(int8_probe(), out)


def int8_probe() -> ir.Model:
    """``x`` f32 ``(4, 32)`` to ``product`` f32 ``(4, 16)``: each value the sum of its row of ``x``."""
    tape = ir.tape.Tape()
    x = graph_input("x", ir.DataType.FLOAT, [ROWS, DEPTH])
    weight = tape.initializer(ir.tensor(np.full((DEPTH, COLUMNS), 127, np.int8), name="weight"))
    scale = tape.initializer(ir.tensor(np.full(COLUMNS, 1 / 127, np.float32), name="scale"))
    product = tape.op("DynamicQuantizeMatMul", [x, weight, scale], domain=MICROSOFT)
    product.name = "product"
    graph = ir.Graph([x], [product], nodes=tape.nodes, initializers=tape.initializers,
                     opset_imports={"": OPSET, MICROSOFT: 1}, name="int8_probe")  # fmt: skip
    return ir.Model(graph, ir_version=IR_VERSION, producer_name="siglip_onnx")


if __name__ == "__main__":
    main()
