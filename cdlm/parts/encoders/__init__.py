"""Encoders: images into features. They are frozen; `cdlm.features` keeps what they compute."""
