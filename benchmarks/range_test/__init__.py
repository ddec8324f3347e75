"""The published benchmark of the range test: how near its learning rates are to the best ones."""
