"""Training: the loop in plain torch, its metrics and checkpoints; and the same loop under Ray Train."""
