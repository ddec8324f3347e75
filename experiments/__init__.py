"""What people run: the entry points of MLproject, as `python -m experiments.<name> --help`."""
