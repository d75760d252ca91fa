"""The quality of the posterior beside its peers: same data, splits, networks and tuning effort, in one run."""
