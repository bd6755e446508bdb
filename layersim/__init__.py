"""One classifier for every layer of a transformer."""
