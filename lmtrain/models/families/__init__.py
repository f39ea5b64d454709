"""One file per model family: its settings, and its names of tensors in Hugging Face's files."""
