"""A data set name or path → samples → batches. `names.open_samples` lists, `source.open_source` opens.

Reading and decoding are plain functions in modules that import no torch, so that data tasks start small.
"""
