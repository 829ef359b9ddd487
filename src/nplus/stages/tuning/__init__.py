"""Measure this machine once, keep what was found, and settle `auto` by it."""
