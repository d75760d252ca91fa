"""The tests of fiberwalk, and what they share."""
