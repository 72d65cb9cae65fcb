"""The embedded data set: rendered people before visible and infrared cameras."""

from vireid_jax.synthetic.dataset import cache_folder, load, render_images

__all__ = ["cache_folder", "load", "render_images"]
