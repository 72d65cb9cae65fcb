"""The check of a GPU; see `__main__`."""

from benchmarks.gpu.tables import markdown as markdown
