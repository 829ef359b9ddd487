"""Processes: who am I, how many are we, and exact sums over all of us."""
