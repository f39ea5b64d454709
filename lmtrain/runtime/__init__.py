"""Process lifecycle: exit codes, signals, injected faults, agreement between processes, checks before a start."""
