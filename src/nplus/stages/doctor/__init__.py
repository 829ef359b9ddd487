"""What can silently be wrong with a run: looked for at its start, as it goes, and afterwards."""
