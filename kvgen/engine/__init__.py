"""Token ids to logits: the contract of the engines, the two that keep it, and what they share."""
