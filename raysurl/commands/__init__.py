"""The commands of `raysurl` and of pipelines/: each module has `main(arguments)`."""
