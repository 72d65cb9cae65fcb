"""Auxiliary modalities: a third modality made from paired visible and infrared images."""

from vireid_jax.nets.auxiliary.images import SMGM

__all__ = ["SMGM"]
