"""The optimiser step, optimisers and schedules, checkpoints."""
