"""Tokenizers: bytes, symbols, learned BPE, tokenizer.json and SentencePiece files."""
