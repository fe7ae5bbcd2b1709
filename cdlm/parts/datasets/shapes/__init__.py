"""Drawn scenes of coloured shapes: what is in them, how they look, how they are said."""
