"""The paper's experiments and the checks it leaves open, each one command with figures and pictures."""
