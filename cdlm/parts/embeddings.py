"""Word ids into the E-wide space that is diffused, and back to scores."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdlm.errors import CdlmError
from cdlm.records import Dims
from cdlm.values import Above0


class Learned(nn.Module):
    """A table that is trained with the network, its rows kept at length sqrt(E) or left free.

    unit: e_v = sqrt(E) w_v / ||w_v||;  logits = sharpness x . e_v / E.
    free: e_v = w_v, at first from N(0, 1);  logits = sharpness (x . e_v - ||e_v||^2 / 2) / E.
    With unit rows every coordinate has a variance of about 1, as the schedules take for granted,
    and the table can't win by growing; free ones can. Under both the word with the highest score
    is the nearest one. Without a `rounding` loss the table collapses.
    Shapes: ids B L -> B L E;  x B L E -> B L V.   Source: Li et al. 2022 (Diffusion-LM), section
    4.1 (free rows); unit rows as in Dieleman et al. 2022 (CDCD), section 3.2.
    """

    def __init__(
        self,
        *,
        norm: Literal["unit", "free"] = "unit",  # whether all rows have length sqrt(E)
        frozen: bool = False,  # a fixed random code for every word
        sharpness: Above0 = 12.0,  # how far a word's score for itself is above others', in nats
        dims: Dims,
    ):
        super().__init__()
        self.sharpness, self.unit = sharpness, norm == "unit"
        self.weight = nn.Parameter(torch.randn(dims.vocab, dims.width), requires_grad=not frozen)

    def table(self) -> Tensor:
        if not self.unit:
            return self.weight
        return F.normalize(self.weight, dim=1) * self.weight.shape[1] ** 0.5

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.table())

    def logits(self, x: Tensor) -> Tensor:
        table = self.table()
        scores = x @ table.T
        if not self.unit:  # long rows would win everywhere
            scores = scores - table.square().sum(1) / 2
        return scores * (self.sharpness / x.shape[-1])


class Pretrained(nn.Module):
    """The word table of a pretrained transformer, shifted and scaled to variance 1.

    e_v = (w_v - mean) / std, over the whole table;  logits = sharpness x . e_v / E.
    Its width is the model's `width`, its rows are those of the same source's tokenizer.
    The scores are those of a language head with tied weights: among rows of different lengths the
    best one is not always the nearest word.
    Shapes: ids B L -> B L E;  x B L E -> B L V.   Source: Xu 2022 (CLIP-Diffusion-LM), section 4
    (DistilBERT's word embeddings, frozen).
    Raises CdlmError where width or vocabulary do not fit.
    """

    needs: ClassVar[set[str]] = {"vocabulary"}

    def __init__(
        self,
        *,
        source: str,  # hub name or folder, as transformers' from_pretrained takes
        frozen: bool = True,
        sharpness: Above0 = 12.0,  # how far a word's score for itself is above others', in nats
        dims: Dims,
    ):
        super().__init__()
        self.sharpness = sharpness
        words = _word_table(source)
        if tuple(words.shape) != (dims.vocab, dims.width):
            raise CdlmError(
                f"embedding.source: {source} has {words.shape[0]} words of width {words.shape[1]}, "
                f"but the tokenizer has {dims.vocab} and model.width is {dims.width}\n"
                f'    set model.width = {words.shape[1]}, and tokenizer = {{ use = "hugging_face", '
                f'source = "{source}" }}'
            )
        self.weight = nn.Parameter((words - words.mean()) / words.std(), requires_grad=not frozen)

    def table(self) -> Tensor:
        return self.weight

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)

    def logits(self, x: Tensor) -> Tensor:
        return x @ self.weight.T * (self.sharpness / x.shape[-1])


class Bits(nn.Module):
    """Analog bits: the binary number of every word's id, a 0 as -1 and a 1 as +1; fixed.

    e_v = 2 binary(v) - 1, of n = ceil(log2 V) columns, lowest bit first;
    logits = sharpness x . e_v / r, for which every wrong bit of x costs 2 sharpness nats: the
    product of independent logistic bits, restricted to the V words that there are.
    Where the model's width is r n, the n columns stand r times, and a word survives more noise.
    Shapes: ids B L -> B L E;  x B L E -> B L V.
    Source: Chen et al. 2022 (Bit Diffusion), section 2, "Analog bits".
    Raises CdlmError where the width is no multiple of n.
    """

    codes: Tensor

    def __init__(
        self,
        *,
        sharpness: Above0 = 4.0,  # what a right bit adds to a word's score, in nats
        dims: Dims,
    ):
        super().__init__()
        bits = max(1, (dims.vocab - 1).bit_length())
        self.repeats, rest = divmod(dims.width, bits)
        if rest or not self.repeats:
            raise CdlmError(
                f"embedding bits: {dims.vocab:,} words have numbers of {bits} bits, which do not "
                f"fill model.width = {dims.width}\n"
                f"    set model.width = {bits}, or a multiple of it: {2 * bits}, {3 * bits}, ..."
            )
        self.sharpness = sharpness
        digits = torch.arange(dims.vocab)[:, None] >> torch.arange(bits) & 1
        self.register_buffer("codes", (2.0 * digits - 1).repeat(1, self.repeats))

    def table(self) -> Tensor:
        return self.codes

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.codes)

    def logits(self, x: Tensor) -> Tensor:
        return x @ self.codes.T * (self.sharpness / self.repeats)


def _word_table(source: str) -> Tensor:
    from transformers import AutoModel

    if source.startswith((".", "/", "~")) and not (Path(source) / "config.json").is_file():
        raise CdlmError(f"embedding.source: no config.json in {source}")
    try:
        model = AutoModel.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise CdlmError(
            f'embedding.source: "{source}" is neither a model folder nor to be had from the hub '
            "(is this machine offline?)"
        ) from error
    return model.get_input_embeddings().weight.detach().float().clone()
