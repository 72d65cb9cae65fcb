"""Independent references: PyTorch modules and losses written from the papers' equations.

Nothing here imports jax or the package. `inputs` makes seeded arrays, `convert` maps
names and layouts, `expected` runs the references, `store` keeps their outputs in
tests/support/golden so that machines without PyTorch still compare with them.
"""
