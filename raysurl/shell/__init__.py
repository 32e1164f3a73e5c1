"""What `--help` and shells say of settings, read from the text of the modules: nothing is imported for it."""
