"""A Hugging Face folder: its files, its tensors, and what each family makes of them."""
