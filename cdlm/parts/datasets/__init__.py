"""Datasets: images with captions, in named splits."""
