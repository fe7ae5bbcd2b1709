"""Ways to round to the nearest word, each as somebody who cares about speed would call it.

A provider is given the words once and may prepare them; what it does for every new x is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import pytest
import torch
from goals import DIFFUSION_LM, OURS, UNCERTIFIED
from torch import Tensor

Call = Callable[[], Tensor]
Make = Callable[[Tensor, Tensor], Call]
"""(x N E, table V E) -> the call that is timed, which gives the ids N."""


@dataclass(frozen=True)
class Provider:
    """A way to round."""

    make: Make
    dtype: str = "fp32"  # of the product
    devices: tuple[str, ...] = ("cpu", "cuda")
    precision: Literal["highest", "high"] = "highest"  # of torch's float32 products
    graph: bool = True  # whether it is replayed from a CUDA graph, so that launching costs nothing
    tokens: bool = True  # whether it gives tokens


def diffusion_lm(x: Tensor, table: Tensor) -> Tensor:
    """All squared distances V x N, clamped at 0, then the least one of each column.

    The way of Diffusion-LM's released sampler, by its formula
    |e|^2 + |x|^2 - 2 e.x (Li et al. 2022; improved_diffusion/test_util.py, get_efficient_knn).
    """
    words = table.square().sum(1, keepdim=True)
    far = words + x.square().sum(1) - 2.0 * torch.mm(table, x.T)
    return torch.topk(-torch.clamp(far, min=0.0), k=1, dim=0).indices[0]


def _diffusion_lm(x: Tensor, table: Tensor) -> Call:
    return partial(diffusion_lm, x, table)


def _scores(x: Tensor, turned: Tensor, bias: Tensor) -> Tensor:
    """argmax_v (x . e_v - |e_v|^2 / 2). Shapes: N E, E V, V -> N."""
    return torch.addmm(bias, x, turned).argmax(1)


def _addmm(x: Tensor, table: Tensor, dtype: torch.dtype = torch.float32) -> Call:
    bias = -0.5 * table.square().sum(1)
    x, turned, bias = x.to(dtype), table.to(dtype).T.contiguous(), bias.to(dtype)
    return partial(_scores, x, turned, bias)


def _compiled(x: Tensor, table: Tensor) -> Call:
    """The same, compiled; with the slowest and most thorough search for kernels on a GPU."""
    mode = "max-autotune-no-cudagraphs" if x.is_cuda else "default"  # captured by the race itself
    torch.compiler.reset()
    compiled = torch.compile(_scores, mode=mode, dynamic=False)
    return partial(compiled, x, table.T.contiguous(), -0.5 * table.square().sum(1))


def _faiss(x: Tensor, table: Tensor) -> Call:
    faiss = pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(table.shape[1])
    index.add(table.numpy())
    vectors = x.numpy()
    return lambda: torch.from_numpy(index.search(vectors, 1)[1][:, 0])


def _flash_kmeans(x: Tensor, table: Tensor) -> Call:
    """fp16 on a GPU, rows and words in fp16 already; its plain torch code on a CPU."""
    pytest.importorskip("flash_kmeans", reason="flash-kmeans is not installed")
    if not x.is_cuda:
        from flash_kmeans.torch_fallback import euclid_assign_torch_native_chunked as assign

        return lambda: assign(x[None], table[None], x.square().sum(1)[None])[0]
    from flash_kmeans.assign_euclid_triton import euclid_assign_triton

    rows, words = x.half()[None], table.half()[None]
    norms = words.float().square().sum(2)
    return lambda: euclid_assign_triton(rows, words, rows.float().square().sum(2), c_sq=norms)[0]


def _flashlib(x: Tensor, table: Tensor) -> Call:
    """fp16 on a GPU, rows and words in fp16 already; its plain torch code on a CPU."""
    pytest.importorskip("flashlib", reason="flashlib is not installed")
    if not x.is_cuda:
        from flashlib.primitives.kmeans.torch_fallback import (
            euclid_assign_torch_native_chunked as assign,
        )

        return lambda: assign(x[None], table[None])[0]
    from flashlib.primitives.kmeans import euclid_assign_triton

    rows, words = x.half()[None], table.half()[None]
    norms = words.float().square().sum(2)
    return lambda: euclid_assign_triton(rows, words, c_sq=norms)[0]


def _fastkmeans(x: Tensor, table: Tensor) -> Call:
    """Its Triton kernel on a GPU, which rounds to fp16 inside; its `predict` on a CPU."""
    fastkmeans = pytest.importorskip("fastkmeans", reason="fastkmeans is not installed")
    if not x.is_cuda:
        model = fastkmeans.FastKMeans(table.shape[1], len(table), gpu=False)
        model.centroids, vectors = table.numpy(), x.numpy()
        return lambda: torch.from_numpy(model.predict(vectors))
    from fastkmeans.triton_kernels import triton_kmeans

    norms, ids = table.square().sum(1), torch.zeros(len(x), dtype=torch.int64, device=x.device)

    def call() -> Tensor:
        triton_kmeans(x, x.square().sum(1), table, norms, ids)
        return ids

    return call


def _plain(x: Tensor, table: Tensor) -> Call:
    from cdlm.kernels import nearest_token

    return partial(nearest_token, x, table)


def _prepared(x: Tensor, table: Tensor) -> Call:
    from cdlm.kernels import nearest_token, prepare_table

    return partial(nearest_token, x, prepare_table(table))


def _uncertified(x: Tensor, table: Tensor) -> Call:
    """cdlm's one pass in fp16 alone, which says in which few words the nearest one is."""
    from cdlm.kernels import prepare_table
    from cdlm.kernels.configs import config_for
    from cdlm.kernels.gpu import scan

    prepared = prepare_table(table)
    config = config_for(prepared.halves.width, len(x), x.device)
    return lambda: scan(x, prepared, config).best


BF16 = partial(_addmm, dtype=torch.bfloat16)

PROVIDERS: dict[str, Provider] = {
    OURS: Provider(_prepared),
    "cdlm, unprepared table": Provider(_plain),
    UNCERTIFIED: Provider(_uncertified, "fp16", ("cuda",), tokens=False),
    DIFFUSION_LM: Provider(_diffusion_lm, graph=False),
    "addmm+argmax fp32": Provider(_addmm),
    "addmm+argmax TF32": Provider(_addmm, "TF32", ("cuda",), "high"),
    "addmm+argmax bf16": Provider(BF16, "bf16"),
    "torch.compile fp32": Provider(_compiled, devices=("cpu",)),
    "torch.compile TF32": Provider(_compiled, "TF32", ("cuda",), "high"),
    "faiss-cpu": Provider(_faiss, devices=("cpu",)),
    "flash-kmeans": Provider(_flash_kmeans, "fp16 on a GPU"),
    "flashlib": Provider(_flashlib, "fp16 on a GPU"),
    "fastkmeans": Provider(_fastkmeans, "fp16 on a GPU"),
}
OWN = {OURS, "cdlm, unprepared table"}
