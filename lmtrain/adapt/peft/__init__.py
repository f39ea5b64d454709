"""Adapters in the file format of the PEFT library (huggingface/peft)."""
