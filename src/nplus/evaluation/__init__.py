"""Judging: win rates, automatic metrics. Scorers are passed in."""
