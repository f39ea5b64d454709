"""Memory, time and cost of a run that is not started: on this machine, or on machines that are not present."""
