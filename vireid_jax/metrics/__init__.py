"""CMC, mAP and mINP under the named protocols, in NumPy: nothing here imports jax."""

from vireid_jax.metrics.chance import Chance, chance_map
from vireid_jax.metrics.distance import cosine_distance
from vireid_jax.metrics.draws import draw_gallery
from vireid_jax.metrics.protocols import PROTOCOLS, Protocol, evaluate, get_protocol
from vireid_jax.metrics.ranking import Ranking, Rows, rank_metrics
from vireid_jax.metrics.table import format_table, near_chance, to_markdown

__all__ = [
    "PROTOCOLS",
    "Chance",
    "Protocol",
    "Ranking",
    "Rows",
    "chance_map",
    "cosine_distance",
    "draw_gallery",
    "evaluate",
    "format_table",
    "get_protocol",
    "near_chance",
    "rank_metrics",
    "to_markdown",
]
