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
        "flickr30k": "cdlm.parts.datasets.flickr30k:Flickr30k",
        "coco": "cdlm.parts.datasets.coco:Coco",
        "folder": "cdlm.parts.datasets.folder:Folder",
        "mix": "cdlm.parts.datasets.mix:Mix",
    },
    "encoder": {
        "open_clip": "cdlm.parts.encoders.open_clip:OpenClip",
        "features": "cdlm.parts.encoders.features:Features",
        "joined": "cdlm.parts.encoders.joined:Joined",
        "paired_features": "cdlm.parts.encoders.features:PairedFeatures",
    },
    "views": {
        "none": "cdlm.parts.views:Alone",
        "crops": "cdlm.parts.views:Crops",
    },
    "tokenizer": {
        "words": "cdlm.parts.tokenizers:Words",
        "bpe": "cdlm.parts.tokenizers:Bpe",
        "hugging_face": "cdlm.parts.tokenizers:HuggingFace",
    },
    "process": {
        "gaussian": "cdlm.gaussian:Gaussian",
    },
    "length": {
        "generated": "cdlm.parts.lengths:Generated",
        "histogram": "cdlm.parts.lengths:Histogram",
        "predicted": "cdlm.parts.lengths:Predicted",
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
        "sigmoid": "cdlm.parts.schedules:Sigmoid",
        "discrete": "cdlm.parts.schedules:Discrete",
        "learned": "cdlm.parts.schedules:Learned",
    },
    "noise": {
        "independent": "cdlm.parts.noise:Independent",
        "shared": "cdlm.parts.noise:Shared",
    },
    "timesteps": {
        "uniform": "cdlm.parts.timesteps:Uniform",
        "shared": "cdlm.parts.timesteps:Shared",
        "stratified": "cdlm.parts.timesteps:Stratified",
        "logit_normal": "cdlm.parts.timesteps:LogitNormal",
        "importance": "cdlm.parts.timesteps:Importance",
    },
    "target": {
        "x0": "cdlm.parts.targets:X0",
        "eps": "cdlm.parts.targets:Eps",
        "v": "cdlm.parts.targets:V",
        "earlier": "cdlm.parts.targets:Earlier",
    },
    "conditioning": {
        "time_add": "cdlm.parts.conditioning:TimeAdd",
        "feature_add": "cdlm.parts.conditioning:FeatureAdd",
        "extra_token": "cdlm.parts.conditioning:ExtraToken",
        "time_token": "cdlm.parts.conditioning:TimeToken",
        "time_norm": "cdlm.parts.conditioning:TimeNorm",
        "feature_elementwise": "cdlm.parts.conditioning:FeatureElementwise",
        "feature_norm": "cdlm.parts.conditioning:FeatureNorm",
        "cross_attention": "cdlm.parts.conditioning:CrossAttention",
        "text_token": "cdlm.parts.conditioning:TextToken",
    },
    "denoiser": {
        "distilbert": "cdlm.parts.denoisers.distilbert:DistilBert",
        "transformer": "cdlm.parts.denoisers.transformer:Transformer",
        "modern": "cdlm.parts.denoisers.modern:Modern",
        "linear": "cdlm.parts.denoisers.linear:Linear",
    },
    "self_conditioning": {
        "none": "cdlm.parts.self_conditioning:Forgetful",
        "last": "cdlm.parts.self_conditioning:Last",
    },
    "guidance": {
        "none": "cdlm.parts.guidance:Plain",
        "scale": "cdlm.parts.guidance:Scale",
        "linear": "cdlm.parts.guidance:Linear",
        "transformer": "cdlm.parts.guidance:Transformer",
        "classifier": "cdlm.parts.guidance:Classifier",
    },
    "variance": {
        "fixed": "cdlm.parts.variances:Fixed",
        "learned": "cdlm.parts.variances:Learned",
    },
    "loss": {
        "mse": "cdlm.parts.losses:Mse",
        "l1": "cdlm.parts.losses:L1",
        "huber": "cdlm.parts.losses:Huber",
        "min_snr": "cdlm.parts.losses:MinSnr",
        "rounding": "cdlm.parts.losses:Rounding",
        "anchor": "cdlm.parts.losses:Anchor",
        "anchor_rounding": "cdlm.parts.losses:AnchorRounding",
        "prior": "cdlm.parts.losses:Prior",
        "vlb": "cdlm.parts.losses:Vlb",
        "match": "cdlm.parts.losses:Match",
        "length": "cdlm.parts.losses:Length",
    },
    "objective": {
        "process_loss": "cdlm.objective:ProcessLoss",
    },
    "rounding": {
        "none": "cdlm.parts.rounding:Free",
        "clamp": "cdlm.parts.rounding:Clamp",
        "soft": "cdlm.parts.rounding:Soft",
    },
    "grid": {
        "uniform": "cdlm.parts.grids:Uniform",
        "quadratic": "cdlm.parts.grids:Quadratic",
        "log_snr": "cdlm.parts.grids:LogSnr",
    },
    "sampler": {
        "ddim": "cdlm.parts.samplers:Ddim",
        "ddpm": "cdlm.parts.samplers:Ddpm",
        "renoise": "cdlm.parts.samplers:Renoise",
        "refeed": "cdlm.parts.samplers:Refeed",
        "dpm_solver": "cdlm.parts.samplers:DpmSolver",
        "heun": "cdlm.parts.samplers:Heun",
    },
    "constraint": {
        "template": "cdlm.parts.constraints:Template",
        "forbid": "cdlm.parts.constraints:Forbid",
        "size": "cdlm.parts.constraints:Size",
        "known": "cdlm.parts.constraints:Known",
    },
    "selection": {
        "first": "cdlm.parts.selections:First",
        "mbr": "cdlm.parts.selections:Mbr",
        "consensus": "cdlm.parts.selections:Consensus",
        "similarity": "cdlm.parts.selections:Similarity",
    },
    "metric": {
        "bleu": "cdlm.parts.metrics.coco:Bleu",
        "batch_bleu": "cdlm.parts.metrics.batch_bleu:BatchBleu",
        "meteor": "cdlm.parts.metrics.coco:Meteor",
        "rouge_l": "cdlm.parts.metrics.coco:RougeL",
        "cider_d": "cdlm.parts.metrics.coco:CiderD",
        "spice": "cdlm.parts.metrics.coco:Spice",
        "clip_score": "cdlm.parts.metrics.similarity:ClipScore",
        "image_similarity": "cdlm.parts.metrics.similarity:ImageSimilarity",
        "exact_match": "cdlm.parts.metrics.text:ExactMatch",
        "diversity": "cdlm.parts.metrics.text:Diversity",
        "novelty": "cdlm.parts.metrics.text:Novelty",
        "repetition": "cdlm.parts.metrics.text:Repetition",
        "caption_length": "cdlm.parts.metrics.text:CaptionLength",
        "true_caption": "cdlm.parts.datasets.shapes.dataset:TrueCaption",
    },
    "launcher": {
        "local": "cdlm.parts.launchers:Local",
    },
}


@hookimpl
def cdlm_register(registry: Registry) -> None:
    """The same hook that a plugin has."""
    for kind, names in BUILT_IN.items():
        for name, target in names.items():
            registry.add(kind, name, target)
