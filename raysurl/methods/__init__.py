"""One file per method; its docstring maps paper and equation to line and states every deviation."""
