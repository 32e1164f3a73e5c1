"""A trained encoder in the forms that other programs read, each compared with the original before it stands there."""
