"""DistilBERT as the denoiser, through transformers."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from cdlm.errors import CdlmError
from cdlm.parts.denoisers import require_equal_heads
from cdlm.records import Dims, Stream
from cdlm.values import Positive, Share


class DistilBert(nn.Module):
    """DistilBERT's encoder, through transformers, over vectors instead of words.

    Learned positions, then (unless `input_norm` is off) a LayerNorm, then post-norm layers. Those
    norms set the scale of whatever comes in, noise included: the network hardly sees how noisy x_t
    is, so a conditioning such as `time_add` must say it. Without the first one a little more of it
    comes through.
    `pretrained` takes the weights of a hub name or a folder; `layers` then counts those kept, from
    the first. Shapes: B M H -> B M H.   Source: Sanh et al. 2019; Xu 2022 (CLIP-Diffusion-LM).
    Raises CdlmError where widths, heads or lengths do not fit together.
    """

    reads: ClassVar[set[str]] = {"tokens"}

    def __init__(
        self,
        *,
        layers: Positive = 6,
        heads: Positive = 12,  # must divide the model's `hidden`
        dropout: Share = 0.1,
        input_norm: bool = True,  # DistilBERT's own LayerNorm at the input
        pretrained: str = "",  # hub name or folder; "" starts from random weights
        dims: Dims,
    ):
        super().__init__()
        require_equal_heads(heads, dims)
        if pretrained:
            self.bert = _pretrained(pretrained, layers, heads, dropout, dims)
        else:
            self.bert = _random(layers, heads, dropout, dims)
        embeddings = self.bert.get_submodule("embeddings")
        embeddings.word_embeddings = nn.Identity()  # words come in as vectors
        if not input_norm:
            embeddings.LayerNorm = nn.Identity()

    def forward(self, stream: Stream) -> Tensor:
        out = self.bert(inputs_embeds=stream.h, attention_mask=stream.mask.long())
        return out.last_hidden_state


def _random(layers: int, heads: int, dropout: float, dims: Dims) -> nn.Module:
    from transformers import DistilBertConfig, DistilBertModel

    config = DistilBertConfig(
        vocab_size=1,
        pad_token_id=0,
        dim=dims.hidden,
        hidden_dim=4 * dims.hidden,
        n_layers=layers,
        n_heads=heads,
        dropout=dropout,
        attention_dropout=dropout,
        max_position_embeddings=dims.seen,
    )
    return DistilBertModel(config)


def _pretrained(source: str, layers: int, heads: int, dropout: float, dims: Dims) -> nn.Module:
    from transformers import DistilBertConfig, DistilBertModel

    _must_be_there(source)
    config = DistilBertConfig.from_pretrained(source)
    wanted = {"model.hidden": dims.hidden, "denoiser.heads": heads}
    given = {"model.hidden": config.dim, "denoiser.heads": config.n_heads}
    wrong = [
        f"{k} is {wanted[k]}, but {source} has {given[k]}" for k in wanted if wanted[k] != given[k]
    ]
    if layers > config.n_layers:
        wrong.append(f"denoiser.layers is {layers}, but {source} has {config.n_layers}")
    if dims.seen > config.max_position_embeddings:
        most = config.max_position_embeddings
        wrong.append(f"{dims.seen} tokens (caption and extra), but {source} has {most} positions")
    if wrong:
        raise CdlmError("\n".join(wrong))
    config.n_layers, config.dropout, config.attention_dropout = layers, dropout, dropout
    return DistilBertModel.from_pretrained(source, config=config)


def _must_be_there(source: str) -> None:
    """Refuse a folder that is not there; the hub would report a missing repository instead."""
    looks_local = source.startswith((".", "/", "~")) or source.count("/") > 1
    if looks_local and not (Path(source) / "config.json").is_file():
        raise CdlmError(
            f"denoiser.pretrained: no config.json in {source}\n"
            "    give a folder that transformers' save_pretrained wrote, or a hub name such as "
            '"distilbert-base-uncased"'
        )
