"""The embedded data set: rendered people before visible and infrared cameras.

  identity   who a person is: body, hair, clothes, bag, with colors in light and infrared
  figure     the person in a moment of the walk: skeleton, then round tubes with textures
  scene      the six cameras, their places, light and passers-by, and the crop of a detector
  render     pixels from tubes and scenes, in JAX on the CPU
  dataset    which images a `Split` has, rendering them, the cache
  layouts    the same people on disk in the folders of SYSU-MM01, RegDB and LLCM

Every image is a function of (seed, person, camera, index) alone.
`python -m vireid_jax.synthetic` draws a contact sheet or writes such folders.
"""

from vireid_jax.synthetic.dataset import cache_folder, load, render_images

__all__ = ["cache_folder", "load", "render_images"]
