"""How weights are updated: advantage rules, groups of rollouts, TRL's trainer, supervised learning, DPO."""
