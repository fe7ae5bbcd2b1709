"""The quickest tiles of the GPU kernel on this GPU, kept on disk for every later run.

python benchmarks/tune.py          # widths 16, 64, 128, 768: a few minutes, most of it compiling
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from conftest import captured, clock
from problems import BERT, WIDTHS, Shape, problem

from cdlm.kernels import prepare_table
from cdlm.kernels.configs import Config, config_for, tune
from cdlm.kernels.gpu import scan
from cdlm.kernels.words import WordTable

ROWS = (2_048, 8_192, 65_536)  # few, some, many
ROUNDS = 5


def seconds(x: torch.Tensor, table: WordTable) -> Callable[[Config], float]:
    """How long a scan with given tiles takes: the least of a few rounds of 10 calls."""

    def measure(config: Config) -> float:
        call = captured(lambda: scan(x, table, config).best)
        found = []
        for _ in range(ROUNDS):
            begin = clock()
            for _ in range(10):
                call()
            found.append((clock() - begin) / 10)
        return min(found)

    return measure


def main() -> None:
    if not torch.cuda.is_available():
        raise SystemExit("there is no GPU here")
    for width in [int(it) for it in sys.argv[1:]] or WIDTHS:
        for rows in ROWS:
            given = problem(Shape("cuda", rows, BERT, width))
            table = prepare_table(given.table)
            padded, measure = table.halves.width, seconds(given.x, table)
            usual = measure(config_for(padded, rows, given.x.device))
            best = tune(padded, rows, given.x.device, measure)
            gain = usual / measure(best)
            print(f"E={width}, N={rows:,}: {gain:.2f} times as fast with {best}", flush=True)


if __name__ == "__main__":
    main()
