"""`python -m fiberwalk`."""

from fiberwalk.cli import app

app()
