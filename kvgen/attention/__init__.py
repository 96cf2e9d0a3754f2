"""What can be computed from a trace: the steps of the formula, and what a head does."""
