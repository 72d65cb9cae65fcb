"""Ablation tables over seeds: `python -m vireid_jax.ablation --help`.

plan      rows and seeds -> cells: folder, commands, scores that are wanted
settings  a row's configuration, from its recipe and changes
results   what a cell has saved
pool      cells' commands side by side, stopped and resumed together
report    means and spread as Markdown and CSV
"""
