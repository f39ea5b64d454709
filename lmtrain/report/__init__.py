"""What a person reads: metrics, the terminal, plots and the page of a run."""
