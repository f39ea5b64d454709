"""One file per model family: its settings in config.json, and its names of tensors; family.py describes them."""
