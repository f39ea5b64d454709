"""Objectives: pure functions (forward, batch) -> ({name: values}, weights); only the step reduces."""
