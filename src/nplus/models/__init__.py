"""Networks: causal language models, scalar (reward and value) models, toy shapes."""
