"""Engines: from a batch of prompts to sampled responses with their log-probs."""
