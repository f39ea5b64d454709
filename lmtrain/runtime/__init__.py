"""Process lifecycle: exit codes, signals, progress of phases, injected faults, agreement between processes."""
