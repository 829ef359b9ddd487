"""Algorithms: from tensors to objectives. No model, no engine, no process group."""
