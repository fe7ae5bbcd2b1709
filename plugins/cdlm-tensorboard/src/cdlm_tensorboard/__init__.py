"""The plugin: one object that hears of what happens in runs. TensorBoard is not imported here."""

from __future__ import annotations

from cdlm_tensorboard.tracker import Tracker

tracker = Tracker()
