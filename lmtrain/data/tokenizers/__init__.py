"""Tokenizers: bytes, learned BPE, tokenizer.json and SentencePiece files."""
