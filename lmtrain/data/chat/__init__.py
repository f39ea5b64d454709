"""Conversations: rows, chat templates, and the token ids of answers and prompts."""
