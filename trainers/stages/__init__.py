"""The stages of a FATE round, each a function of values: collect, repair, select, warm up, optimise."""
