"""`python -m vireid_jax.data.synthetic`, the name that `python -m vireid_jax.synthetic` had."""

from vireid_jax.runtime import command
from vireid_jax.synthetic.__main__ import main

if __name__ == "__main__":
    command.run(main)
