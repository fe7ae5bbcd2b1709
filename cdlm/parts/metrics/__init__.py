"""kind `metric`: captions against their references, by the protocol that the field publishes.

coco.py        BLEU, METEOR, ROUGE-L, CIDEr-D, SPICE, as coco-caption scores them
similarity.py  captions against images: CLIPScore, and the same with other encoders
text.py        captions by themselves: diversity, novelty, repetition, length
batch_bleu.py  BLEU as CLIP-Diffusion-LM computed it
tokens.py      the words that all of them count
java.py        the Java programs behind some of them
"""

from cdlm.parts.metrics.tokens import tokenize

__all__ = ["tokenize"]
