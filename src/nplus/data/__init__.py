"""Text on its way in: sources and their adapters, the TL;DR preprocessing, tokens, tensors."""
