"""Recipes: base.py has every field of a run, compare.py those of a comparison; each other file states what differs."""
