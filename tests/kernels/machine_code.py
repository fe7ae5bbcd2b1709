"""Compile the scan for GPUs that need not be there, and count what its loop costs per score.

python tests/kernels/machine_code.py [WIDTH...]    a line of JSON for each, and each architecture

Of a width above 256 the innermost loop is counted, over blocks of the width: not the maxima.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cdlm.kernels import bucket
from cdlm.kernels.configs import Config, default

ARCHITECTURES = (80, 90, 100)
WIDTHS = (16, 32, 64, 128, 256, 768)  # padded
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
POINTERS = {"halves": "*fp16", "words": "*fp16", "bias": "*fp32", "best": "*fp32",
            "second": "*fp32"}  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """What the loop over the words costs a thread for each score that it makes."""

    arch: int
    width: int
    instructions: float  # all of the loop's, but those of its matrix product
    product: float  # of tensor cores, and what brings their operands from shared memory
    spills: int  # to and from local memory, in the whole kernel
    registers: int
    shared: int  # bytes


def compiled(arch: int, width: int, config: Config) -> triton.compiler.CompiledKernel:
    names = bucket.scan.arg_names
    constants = {
        "PADDED": width, "BLOCK_M": config.block_m, "BLOCK_N": config.block_n,
        "BLOCK_E": config.block_e, "ACROSS": config.across, "STAGES": config.stages,
    }  # fmt: skip
    kinds = {
        name: POINTERS.get(name, "constexpr" if name in constants else "i32") for name in names
    }
    source = ASTSource(
        fn=bucket.scan,
        signature=kinds,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in POINTERS},
    )
    options = {"num_warps": config.warps, "num_stages": config.stages}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def loops(code: str) -> tuple[list[list[str]], list[str]]:
    """Every loop's instructions, by the branches that go back; and all instructions."""
    labels: dict[str, int] = {}
    instructions: list[str] = []
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@\S+ )?(.*?);", line):
            instructions.append(found[1])
    back = [
        instructions[labels[goal[1]] : place + 1]
        for place, text in enumerate(instructions)
        if (goal := re.search(r"BRA.*`\((\.L_x_\d+)\)", text))
        and labels.get(goal[1], place + 1) <= place
    ]
    return back, instructions


def cost(arch: int, width: int) -> Cost:
    config = default(width, arch)
    kernel = compiled(arch, width, config)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        code = _told("nvdisasm", "-c", file.name)
        used = _told("cuobjdump", "-res-usage", file.name)
    back, everything = loops(code)
    body = min((it for it in back if any("MMA" in text for text in it)), key=len)
    product = [text for text in body if re.match(r"\w*MMA|LDSM", text)]
    each = config.warps * 32 / (config.block_m * config.block_n)
    spills = sum(bool(re.match(r"STL|LDL", text)) for text in everything)
    return Cost(
        arch, width, round((len(body) - len(product)) * each, 2), round(len(product) * each, 2),
        spills, int(re.findall(r"REG:(\d+)", used)[0]), kernel.metadata.shared,
    )  # fmt: skip


def _told(tool: str, *argv: str) -> str:
    done = subprocess.run([TOOLS / tool, *argv], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


if __name__ == "__main__":
    for arch in ARCHITECTURES:
        for width in [int(it) for it in sys.argv[1:]] or WIDTHS:
            print(json.dumps(asdict(cost(arch, width))), flush=True)
