"""Math on tensors and numbers: no config, no model, no process group, no mutation."""
