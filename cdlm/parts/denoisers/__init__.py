"""The transformers that denoise."""
