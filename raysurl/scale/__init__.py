"""The only package that imports Ray: data, training workers, the memory actor, jobs."""
