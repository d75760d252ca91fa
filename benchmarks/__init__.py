"""Benchmarks: what fiberwalk promises, measured through its commands on published and synthetic data."""
