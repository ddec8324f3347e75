"""Each file proves one claim, prints one table and writes one result file."""
