"""One module per method, a package where it has a memory of its own: its docstring maps paper and equation to line and
states every deviation. Nothing is registered: a method is found by the name of its module."""
