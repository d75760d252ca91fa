"""The command `fiberwalk`, which joins builder, model store and server."""
