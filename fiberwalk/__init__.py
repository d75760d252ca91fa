"""fiberwalk."""
