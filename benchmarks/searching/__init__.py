"""The published benchmark of the search: how soon it finds what others find, and how good that is."""
