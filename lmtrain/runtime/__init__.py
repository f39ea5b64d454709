"""One process and its peers: exit codes, signals, faults, agreement between processes, checks before a start."""
