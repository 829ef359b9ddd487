"""The online loop: what each step of a round does (arXiv 2405.07863, Algorithm 2)."""
