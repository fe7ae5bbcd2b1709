"""Training in several processes: `torchrun ... -m cdlm train RECIPE`, one run, shared.

Every process takes every step whole, with the same captions and random numbers, but for the
network: of a batch each sends its own rows through it, and what comes out is put together again.
So the number of processes changes only the order of sums. Losses that look at a whole batch, noise
levels drawn for a batch as a whole, and counts of what has been seen stay what they are.

Gradients are averaged once per update. torch's DDP would average the same numbers, but it wraps one
module of which it expects one call per update; here the embedding learns too, and some losses ask
the network twice. Only the first process writes, prints and evaluates.

A process that is lost is missed at once by whoever waits for its numbers over TCP, and within
PATIENCE_S by all: each counts its heartbeats in the store at which they met.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from cdlm.errors import CdlmError, Interrupted
from cdlm.records import Condition

BEAT_S = 1.0  # between two heartbeats
PATIENCE_S = 8.0  # without a heartbeat, until a process is given up
WAIT = timedelta(days=7)  # for each other's numbers: heartbeats say sooner who is lost
ENDED = 1 << 40  # heartbeats of a process that has done its part

log = logging.getLogger(__name__)


# ------------------------------------------------------------------------------------- who is there


def count() -> int:
    """How many processes share this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This one's place among them."""
    return dist.get_rank() if count() > 1 else 0


def launched() -> bool:
    """Whether a launcher such as torchrun started several of us."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined() -> Iterator[None]:
    """Meet the other processes that a launcher started, if any. Raises CdlmError."""
    if not launched():
        yield
        return
    try:
        store, place, many = next(dist.rendezvous("env://"))
    except (RuntimeError, ValueError) as error:
        raise CdlmError(f"can't meet the other processes: {_first_line(error)}") from error
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=WAIT, world_size=many, rank=place, store=store)
    with _Pulse(store.clone(), place, many).beating():
        yield


def part() -> None:
    """All have done what is done together; the first may take its time with the rest."""
    if count() > 1:
        agreed(0)
        dist.destroy_process_group()


@contextmanager
def first() -> Iterator[None]:
    """The first process goes through this block before the others: what it stores, they find."""
    if rank() > 0:
        agreed(0)
    yield
    if rank() == 0:
        agreed(0)


def agreed(number: int) -> int:
    """The largest number that any process comes with; all wait until all have come."""
    if count() == 1:
        return number
    largest = torch.tensor(number)
    _reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def must_agree(number: int, what: str) -> None:
    """Raises CdlmError with `what` in every process unless all have come with the same number."""
    if agreed(number) != -agreed(-number):
        raise CdlmError(what)


def _reduce(tensor: Tensor, how: Any) -> None:
    try:
        dist.all_reduce(tensor, how)
    except RuntimeError as error:
        why = f"another process has ended: {_first_line(error)}"
        raise CdlmError(_lost(rank(), count(), why)) from error


def _lost(rank: int, of: int, what: str) -> str:
    return (
        f"process {rank} of 0 to {of - 1}: {what}\n"
        "    what the run has saved is intact; start all processes again with --resume"
    )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


# ---------------------------------------------------------------------------------------- the work


def shared(network: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The network, of which every process computes its own rows of a batch."""
    return network if count() == 1 else Shared(network, rank(), count())


@dataclass(frozen=True)
class Shared:
    """A network's call in which each of `of` processes takes a part of the rows, in order.

    Dropout is drawn for all rows, so that a row meets the same mask wherever it is computed. What a
    library's attention kernel drops by itself is drawn by each process alone.
    """

    network: Callable[..., Tensor]
    rank: int
    of: int

    def __call__(
        self,
        x_t: Tensor,
        t: Tensor,
        condition: Condition,
        mask: Tensor,
        recalled: Tensor | None = None,
    ) -> Tensor:
        total = len(x_t)
        rows = slice(self.rank * total // self.of, (self.rank + 1) * total // self.of)
        text = None if condition.text is None else condition.text[rows]
        own = replace(
            condition, features=condition.features[rows], keep=condition.keep[rows], text=text
        )
        back = None if recalled is None else recalled[rows]
        with _DropoutOfAll(total, rows):
            said = self.network(x_t[rows], t[rows], own, mask[rows], back)
        return _Together.apply(said, total, rows, self.of)


class _DropoutOfAll(TorchFunctionMode):
    """Dropout of some rows of a batch, drawn as if for all of them."""

    def __init__(self, total: int, rows: slice):
        super().__init__()
        self.total, self.rows = total, rows

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        if func is F.dropout and args and len(args[0]) == self.rows.stop - self.rows.start:
            x, *rest = args
            return x * F.dropout(x.new_ones(self.total, *x.shape[1:]), *rest, **named)[self.rows]
        return func(*args, **named)


class _Together(torch.autograd.Function):
    """All rows, from the processes that have computed them.

    The way back is times `of`, since `average` divides by it: every process goes back through its
    own rows alone.
    """

    @staticmethod
    def forward(ctx: Any, said: Tensor, total: int, rows: slice, of: int) -> Tensor:
        ctx.rows, ctx.of = rows, of
        whole = said.new_zeros(total, *said.shape[1:])
        whole[rows] = said
        _reduce(whole, dist.ReduceOp.SUM)
        return whole

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return grads[0][ctx.rows] * ctx.of, None, None, None


def average(model: nn.Module) -> None:
    """The mean of every gradient over all processes; the same numbers in each of them."""
    if count() == 1:
        return
    grads = [it.grad for it in model.parameters() if it.grad is not None]
    flat = torch.cat([it.flatten() for it in grads])
    _reduce(flat, dist.ReduceOp.SUM)
    means = (flat / count()).split([it.numel() for it in grads])
    for grad, mean in zip(grads, means, strict=True):
        grad.copy_(mean.view_as(grad))


# ----------------------------------------------------------------------------------- signs of life


@dataclass(frozen=True)
class _Pulse:
    """This process's heartbeats, counted in a store, and an eye on those of the others."""

    store: dist.Store
    rank: int
    of: int

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Beat and watch until the block ends; one that ends in an error just falls silent."""
        over = threading.Event()
        thread = threading.Thread(target=self._watch, args=(over,), daemon=True)
        thread.start()
        ended = False
        try:
            yield
            ended = True
        except Interrupted:
            ended = True
            raise
        finally:
            over.set()
            thread.join()
            if ended:
                with suppress(RuntimeError):  # whoever held the store may have gone already
                    self.store.add(self._key(self.rank), ENDED)

    def _watch(self, over: threading.Event) -> None:
        last = [(-1, time.monotonic())] * self.of
        while not over.wait(BEAT_S):
            try:
                self.store.add(self._key(self.rank), 1)
                beats = [self.store.add(self._key(other), 0) for other in range(self.of)]
            except RuntimeError as error:
                self._give_up(f"the place where all met is gone: {_first_line(error)}")
            now = time.monotonic()
            for other, number in enumerate(beats):
                if number != last[other][0] or number >= ENDED:
                    last[other] = number, now
                elif now - last[other][1] > PATIENCE_S:
                    self._give_up(f"no sign of life from process {other} for {PATIENCE_S:.0f} s")

    def _key(self, rank: int) -> str:
        return f"cdlm/heartbeats/{rank}"

    def _give_up(self, what: str) -> None:
        """End from a thread: the main one waits for numbers that will not come."""
        log.error("%s", _lost(self.rank, self.of, what))
        os._exit(2)
