"""Predictions of a task on a split, and their scores."""
