"""The public operations: one promise on every device and by every path.

The token is argmax_v x . e_v - ||e_v||^2 / 2, the nearest word, in exact arithmetic of the float32
inputs (16-bit inputs are float32 numbers too), the lowest id where words tie. A row with a NaN or
an infinity has no nearest word: its token is 0, and what is rounded from it stays NaN.

Both are torch operations (`torch.ops.cdlm`), which `torch.compile` and CUDA graphs capture.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cdlm.kernels import cpu
from cdlm.kernels.exact import reference
from cdlm.kernels.noise import noise
from cdlm.kernels.words import Coarse, Halves, WordTable, look_over


def nearest_token(x: Tensor, table: Tensor | WordTable) -> Tensor:
    """The word nearest to each vector.

    Shapes: x ... E, table V E -> ids ..., int64; 0 for a vector that is not finite. A table that is
    asked more than once is better prepared (`prepare_table`). float64 inputs take the slow
    reference. Raises ValueError where widths differ or the table is not finite.
    """
    if isinstance(table, WordTable):
        _check(x, table.width)
        return torch.ops.cdlm.nearest_word(x, *_flat(table))
    _check(x, table.shape[-1])
    return torch.ops.cdlm.nearest_token(x, table)


def nearest_word(x: Tensor, table: Tensor | WordTable) -> Tensor:
    """The vector of the word nearest to each vector, in x's type; NaN where a row is not finite.

    Shapes: x ... E, table V E -> ... E.
    """
    words = table.words if isinstance(table, WordTable) else table
    return vectors(x, words, nearest_token(x, table))


def vectors(x: Tensor, words: Tensor, ids: Tensor) -> Tensor:
    """The words of these ids in the place of x; NaN where x is not finite, since 0 NaN is NaN."""
    return words[ids].to(x) + 0.0 * x


def round_and_step(
    x0_hat: Tensor,
    x_t: Tensor,
    table: Tensor | WordTable,
    a: float,
    b: float,
    sigma: float,
    seed: int | Tensor,
) -> tuple[Tensor, Tensor]:
    """Rounding and the sampler's step in one: x_s = a e_id + b x_t + sigma z, id nearest to x0_hat.

    z is standard normal and depends on the seed and the place alone (`cdlm.kernels.noise`). A seed
    in a tensor (1, int64, on the device) may change between replays of a CUDA graph.
    Shapes: x0_hat, x_t ... E -> x_s ... E of x_t's type, ids ..., int64. What is not
    finite in x0_hat is NaN in x_s. Raises ValueError as `nearest_token` does.
    """
    if not isinstance(table, WordTable):
        table = look_over(table.detach().float().contiguous())
    _check(x0_hat, table.width)
    if x_t.shape != x0_hat.shape:
        raise ValueError(f"x0_hat is {tuple(x0_hat.shape)}, x_t {tuple(x_t.shape)}")
    if not isinstance(seed, Tensor):
        seed = torch.tensor([seed], device=x_t.device)
    return torch.ops.cdlm.round_and_step(x0_hat, x_t, *_flat(table), a, b, sigma, seed)


def _check(x: Tensor, width: int) -> None:
    if x.shape[-1] != width:
        raise ValueError(f"the vectors are {x.shape[-1]} wide, the words {width}")


# ------------------------------------------------------------ as torch knows them: tensors, numbers


@torch.library.custom_op("cdlm::nearest_token", mutates_args=())
def _nearest_token(x: Tensor, table: Tensor) -> Tensor:
    if torch.float64 in (x.dtype, table.dtype):
        return reference(x.reshape(-1, x.shape[-1]), table).view(x.shape[:-1])
    return _find(x, look_over(table.detach().float().contiguous()))


@torch.library.custom_op("cdlm::nearest_word", mutates_args=())
def _nearest_word(x: Tensor, tensors: list[Tensor], numbers: list[float]) -> Tensor:
    return _find(x, _table(tensors, numbers))


@torch.library.custom_op("cdlm::round_and_step", mutates_args=())
def _round_and_step(
    x0_hat: Tensor,
    x_t: Tensor,
    tensors: list[Tensor],
    numbers: list[float],
    a: float,
    b: float,
    sigma: float,
    seed: Tensor,
) -> tuple[Tensor, Tensor]:
    table = _table(tensors, numbers)
    if x_t.device.type != "cuda":
        ids = _find(x0_hat, table)
        x_s = a * table.words[ids] + b * x_t + 0.0 * x0_hat  # 0 NaN is NaN: it stays seen
        if sigma:
            x_s = x_s + sigma * noise(seed, x_t.shape)
        return x_s.to(x_t.dtype), ids
    from cdlm.kernels import gpu

    rows, now = x0_hat.reshape(-1, x0_hat.shape[-1]), x_t.contiguous()
    step = gpu.Step(now, torch.empty_like(now), seed, a, b, sigma)
    return step.x_s, gpu.nearest(rows, table, step).view(x_t.shape[:-1])


@torch.library.register_fake("cdlm::nearest_token")
def _(x: Tensor, table: Tensor) -> Tensor:
    return x.new_empty(x.shape[:-1], dtype=torch.long)


@torch.library.register_fake("cdlm::nearest_word")
def _(x: Tensor, tensors: list[Tensor], numbers: list[float]) -> Tensor:
    return x.new_empty(x.shape[:-1], dtype=torch.long)


@torch.library.register_fake("cdlm::round_and_step")
def _(x0_hat, x_t, tensors, numbers, a, b, sigma, seed):  # type: ignore[no-untyped-def]
    return torch.empty_like(x_t), x_t.new_empty(x_t.shape[:-1], dtype=torch.long)


def _find(x: Tensor, table: WordTable) -> Tensor:
    rows = x.detach().reshape(-1, x.shape[-1])
    if x.device.type == "cuda":
        from cdlm.kernels import gpu  # only where there is a GPU: Triton is slow to import

        return gpu.nearest(rows, table).view(x.shape[:-1])
    return cpu.nearest(rows.float(), table).view(x.shape[:-1])


def _flat(table: WordTable) -> tuple[list[Tensor], list[float]]:
    """The table as a torch operation can be given it."""
    tensors, numbers = [table.words, table.bias], [table.radius]
    if table.words.is_cuda:
        half = table.halves
        tensors += [table.mean, half.words, half.bias]
        numbers += [half.scale, half.spread, half.lost, half.constant]
    elif table.coarse is not None:
        tensors += [table.mean, table.coarse.words, table.coarse.bias]
        numbers += [table.spread, table.coarse.lost, table.coarse.bias_lost]
    return tensors, numbers


def _table(tensors: list[Tensor], numbers: list[float]) -> WordTable:
    """The table again, with all that had been found out of it."""
    words, bias, *more = tensors
    radius, *rest = numbers
    if not more:
        return WordTable(words=words, bias=bias, radius=radius)
    mean, *forms = more
    if words.is_cuda:
        table = WordTable(words=words, bias=bias, radius=radius)
        vars(table).update(mean=mean, halves=Halves(*forms, *rest))  # type: ignore[arg-type]
        return table
    spread, *losses = rest
    coarse = Coarse(*forms, *losses)  # type: ignore[arg-type]
    table = WordTable(words=words, bias=bias, radius=radius, coarse=coarse)
    vars(table).update(mean=mean, spread=spread)
    return table
