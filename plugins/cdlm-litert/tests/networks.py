"""Small TensorFlow Lite networks: averages of an image's pixels."""

from __future__ import annotations

from pathlib import Path

import flatbuffers
from ai_edge_litert import schema_py_generated as schema

SIDE, FIELDS = 16, 4  # pixels of an image, and fields of the layer "fields", along each side
TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "uint8": schema.TensorType.UINT8,
    "int8": schema.TensorType.INT8,
}
SCALE, ZERO = 0.5, {"uint8": 3, "int8": -100}  # real = SCALE * (whole - ZERO)


def averages(path: Path, type_: str = "float32", size: tuple[int, int] = (SIDE, SIDE)) -> str:
    """image 1 H W 3 -> "fields" 1 H/4 W/4 3, means -> "whole/mean" 1 3, the mean of all."""
    height, width = size
    step = SIDE // FIELDS
    rows, columns = height // step, width // step
    shapes = {
        "image": [1, height, width, 3],
        "fields/pool": [1, rows, columns, 3],
        "whole/pool": [1, 1, 1, 3],
        "whole/mean": [1, 3],
    }
    pools = [_pool(0, 1, step, step), _pool(1, 2, rows, columns)]
    flat = schema.OperatorT(
        opcodeIndex=1,
        inputs=[2],
        outputs=[3],
        builtinOptionsType=schema.BuiltinOptions.ReshapeOptions,
        builtinOptions=schema.ReshapeOptionsT(newShape=[1, 3]),
    )
    graph = schema.SubGraphT(
        tensors=[_tensor(name, shape, type_) for name, shape in shapes.items()],
        inputs=[0],
        outputs=[3],
        operators=[*pools, flat],
    )
    codes = {schema.BuiltinOperator.AVERAGE_POOL_2D: 2, schema.BuiltinOperator.RESHAPE: 1}
    model = schema.ModelT(
        version=3,
        operatorCodes=[
            schema.OperatorCodeT(deprecatedBuiltinCode=code, builtinCode=code, version=version)
            for code, version in codes.items()
        ],
        subgraphs=[graph],
        buffers=[schema.BufferT()],
    )
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return str(path)


def _tensor(name: str, shape: list[int], type_: str) -> schema.TensorT:
    whole = type_ in ZERO
    how = schema.QuantizationParametersT(scale=[SCALE], zeroPoint=[ZERO[type_]]) if whole else None
    return schema.TensorT(name=name, shape=shape, type=TYPES[type_], quantization=how)


def _pool(source: int, target: int, height: int, width: int) -> schema.OperatorT:
    options = schema.Pool2DOptionsT(
        padding=schema.Padding.VALID,
        strideW=width,
        strideH=height,
        filterWidth=width,
        filterHeight=height,
    )
    return schema.OperatorT(
        opcodeIndex=0,
        inputs=[source],
        outputs=[target],
        builtinOptionsType=schema.BuiltinOptions.Pool2DOptions,
        builtinOptions=options,
    )
