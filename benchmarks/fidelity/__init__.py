"""Fidelity: how close each method's posterior is to that of Hamiltonian Monte Carlo, for one and the same posterior."""
