"""Conversations: rows, chat templates, and the tokens of their answers."""
