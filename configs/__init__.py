"""Recipes: base.py holds every knob, each other file is one run and says only what differs."""
