"""Sweeps: trials of one recipe with other values, on any number of processes, and the best of them."""
