"""`python -m launch.compile_ahead` is `python -m launch.ahead`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("launch.ahead", run_name="__main__", alter_sys=True)
