"""The recipes of configs/ ship inside the package: `--config smcl` works without a clone."""

import setuptools

RECIPES = "vireid_jax.recipes.configs"

setuptools.setup(
    packages=[*setuptools.find_packages(include=["vireid_jax*"]), RECIPES],
    package_dir={RECIPES: "configs"},
)
