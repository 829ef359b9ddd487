"""Stages: one file each, one visible loop each, and `road`, which chains them."""
