"""What S posterior samples cost beside one deterministic run, measured inside one process."""
