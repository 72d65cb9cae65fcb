"""Ablation tables over seeds: `python -m vireid_jax.ablation --help`.

cells     rows and seeds -> trainings: folder, commands, and the scores that each has saved
page      means and spread as Markdown and CSV
__main__  the command: cells side by side, stopped and resumed together
"""
