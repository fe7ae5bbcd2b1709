"""The built-in components: one line each, loaded only when used. `cdlm list` prints this table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cdlm.plugins import hookimpl

if TYPE_CHECKING:
    from cdlm.registry import Registry

BUILT_IN = {
    "dataset": {
        "shapes": "cdlm.parts.datasets.shapes.dataset:Shapes",
        "flickr8k": "cdlm.parts.datasets.flickr8k:Flickr8k",
    },
    "encoder": {
        "open_clip": "cdlm.parts.encoders.open_clip:OpenClip",
        "features": "cdlm.parts.encoders.features:Features",
    },
    "tokenizer": {
        "words": "cdlm.parts.tokenizers:Words",
        "bpe": "cdlm.parts.tokenizers:Bpe",
        "hugging_face": "cdlm.parts.tokenizers:HuggingFace",
    },
    "length": {
        "generated": "cdlm.parts.lengths:Generated",
        "histogram": "cdlm.parts.lengths:Histogram",
    },
    "embedding": {
        "learned": "cdlm.parts.embeddings:Learned",
        "pretrained": "cdlm.parts.embeddings:Pretrained",
        "bits": "cdlm.parts.embeddings:Bits",
    },
    "schedule": {
        "cosine": "cdlm.parts.schedules:Cosine",
        "linear": "cdlm.parts.schedules:Linear",
        "sqrt": "cdlm.parts.schedules:Sqrt",
    },
    "noise": {
        "independent": "cdlm.parts.noise:Independent",
        "shared": "cdlm.parts.noise:Shared",
    },
    "timesteps": {"uniform": "cdlm.parts.timesteps:Uniform"},
    "target": {
        "x0": "cdlm.parts.targets:X0",
        "eps": "cdlm.parts.targets:Eps",
        "v": "cdlm.parts.targets:V",
    },
    "conditioning": {
        "time_add": "cdlm.parts.conditioning:TimeAdd",
        "feature_add": "cdlm.parts.conditioning:FeatureAdd",
        "extra_token": "cdlm.parts.conditioning:ExtraToken",
    },
    "denoiser": {
        "distilbert": "cdlm.parts.denoisers.distilbert:DistilBert",
        "transformer": "cdlm.parts.denoisers.transformer:Transformer",
    },
    "self_conditioning": {
        "none": "cdlm.parts.self_conditioning:Forgetful",
        "last": "cdlm.parts.self_conditioning:Last",
    },
    "guidance": {
        "none": "cdlm.parts.guidance:Plain",
        "scale": "cdlm.parts.guidance:Scale",
    },
    "variance": {"fixed": "cdlm.parts.variances:Fixed"},
    "loss": {
        "mse": "cdlm.parts.losses:Mse",
        "l1": "cdlm.parts.losses:L1",
        "rounding": "cdlm.parts.losses:Rounding",
    },
    "rounding": {
        "none": "cdlm.parts.rounding:Free",
        "clamp": "cdlm.parts.rounding:Clamp",
        "soft": "cdlm.parts.rounding:Soft",
    },
    "grid": {"uniform": "cdlm.parts.grids:Uniform"},
    "sampler": {
        "ddim": "cdlm.parts.samplers:Ddim",
        "ddpm": "cdlm.parts.samplers:Ddpm",
    },
    "constraint": {
        "template": "cdlm.parts.constraints:Template",
        "forbid": "cdlm.parts.constraints:Forbid",
        "size": "cdlm.parts.constraints:Size",
    },
    "selection": {
        "first": "cdlm.parts.selections:First",
        "mbr": "cdlm.parts.selections:Mbr",
        "similarity": "cdlm.parts.selections:Similarity",
    },
    "metric": {
        "bleu": "cdlm.parts.metrics:Bleu",
        "rouge_l": "cdlm.parts.metrics:RougeL",
        "cider_d": "cdlm.parts.metrics:CiderD",
        "exact_match": "cdlm.parts.metrics:ExactMatch",
        "true_caption": "cdlm.parts.datasets.shapes.dataset:TrueCaption",
    },
}


@hookimpl
def cdlm_register(registry: Registry) -> None:
    """The same hook that a plugin has."""
    for kind, names in BUILT_IN.items():
        for name, target in names.items():
            registry.add(kind, name, target)
