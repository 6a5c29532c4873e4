"""FATE, PFPO and the baselines to compare them with."""
