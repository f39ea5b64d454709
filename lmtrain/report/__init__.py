"""Output for the user: metrics, terminal, plots, and the report of a run."""
