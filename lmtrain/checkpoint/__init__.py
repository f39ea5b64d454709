"""Checkpoints: asynchronous and atomic through Orbax (checkpoints.py), with a manifest of hashes (manifest.py)."""

from lmtrain.checkpoint.checkpoints import Checkpoints, SaveFailed, inspect, load, restore
from lmtrain.checkpoint.manifest import Damaged, ranked, steps, verify

__all__ = ['Checkpoints', 'Damaged', 'SaveFailed', 'inspect', 'load', 'ranked', 'restore', 'steps', 'verify']
