"""Word ids into the E-wide space that is diffused, and back to scores."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdlm.errors import CdlmError
from cdlm.records import Dims
from cdlm.values import Above0


class Learned(nn.Module):
    """A table that is trained with the network, its rows kept at length sqrt(E).

    e_v = sqrt(E) w_v / ||w_v||;  logits = sharpness x . e_v / E.
    So every coordinate has a variance of about 1, as the schedules take for granted, and the table
    can't win by growing. Without a `rounding` loss it collapses.
    Shapes: ids B L -> B L E;  x B L E -> B L V.   Source: Li et al. 2022 (Diffusion-LM), section
    4.1; unit rows as in Dieleman et al. 2022 (CDCD), section 3.2.
    """

    def __init__(
        self,
        *,
        frozen: bool = False,  # a fixed random code for every word
        sharpness: Above0 = 12.0,  # how far a word's score for itself is above others', in nats
        dims: Dims,
    ):
        super().__init__()
        self.sharpness = sharpness
        self.weight = nn.Parameter(torch.randn(dims.vocab, dims.width), requires_grad=not frozen)

    def table(self) -> Tensor:
        return F.normalize(self.weight, dim=1) * self.weight.shape[1] ** 0.5

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.table())

    def logits(self, x: Tensor) -> Tensor:
        return x @ self.table().T * (self.sharpness / x.shape[-1])


class Pretrained(nn.Module):
    """The word table of a pretrained transformer, shifted and scaled to variance 1.

    e_v = (w_v - mean) / std, over the whole table;  logits = sharpness x . e_v / E.
    Its width is the model's `width`, its rows are those of the same source's tokenizer.
    Shapes: ids B L -> B L E;  x B L E -> B L V.   Source: Xu 2022 (CLIP-Diffusion-LM), section 3.1
    (DistilBERT's word embeddings, frozen).
    Raises CdlmError where width or vocabulary do not fit.
    """

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
