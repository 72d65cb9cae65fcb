"""CMC, mAP and mINP under the named protocols, in NumPy: nothing here imports jax."""

from vireid_jax.metrics.draws import (
    check_permutations,
    draw_gallery,
    draw_official,
    read_permutations,
)
from vireid_jax.metrics.inputs import cosine_distance
from vireid_jax.metrics.protocols import PROTOCOLS, Protocol, evaluate, get_protocol, sampled_rows
from vireid_jax.metrics.ranking import Ranking, Rows, rank_metrics
from vireid_jax.metrics.rerank import k_reciprocal
from vireid_jax.metrics.results import Chance, chance_map, combine, row_label
from vireid_jax.metrics.search import Streamed, rank_features
from vireid_jax.metrics.table import format_table, near_chance, to_markdown

__all__ = [
    "PROTOCOLS",
    "Chance",
    "Protocol",
    "Ranking",
    "Rows",
    "Streamed",
    "chance_map",
    "check_permutations",
    "combine",
    "cosine_distance",
    "draw_gallery",
    "draw_official",
    "evaluate",
    "format_table",
    "get_protocol",
    "k_reciprocal",
    "near_chance",
    "rank_features",
    "rank_metrics",
    "read_permutations",
    "row_label",
    "sampled_rows",
    "to_markdown",
]
