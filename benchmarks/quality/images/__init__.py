"""Image sets beside the tables: larger networks, and inputs of other kinds that a posterior should find unfamiliar."""
