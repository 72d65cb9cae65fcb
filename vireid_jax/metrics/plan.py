"""What a protocol is made of, and which images its trials use."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from vireid_jax.metrics.draws import draw_trials
from vireid_jax.metrics.official import Permutations
from vireid_jax.metrics.ranking import check_ids
from vireid_jax.types import MODALITIES

# (query person, query camera, gallery person, gallery camera) -> bool [Q, G]
Exclude = Callable[[Any, Any, Any, Any], np.ndarray]


class Protocol(NamedTuple):
    """One way to search."""

    query: str  # modality of the queries, one of `types.MODALITIES`
    cmc: str  # R1 ... R20 count distinct people ("id") or images ("image")
    explain: str  # what a user may wonder about
    drawn: str | None = None  # which side a trial draws: "gallery", "query", or none
    draws: tuple[str, ...] = ()  # the draws that apply, the usual one first
    draw_cameras: tuple[int, ...] = ()  # cameras that are drawn from, in the order of the draw
    shots: int | None = None  # drawn images of one person and camera, at most; None: everything
    query_cameras: tuple[int, ...] | None = None  # every camera that takes queries; None: any
    gallery_cameras: tuple[int, ...] | None = None  # every camera of images offered for a gallery
    exclude: Exclude | None = None

    @property
    def gallery(self) -> str:
        """The modality of the gallery."""
        return MODALITIES[1 - MODALITIES.index(self.query)]

    @property
    def trials(self) -> int:
        """How many trials the benchmark averages over."""
        return 10 if self.drawn else 1

    @property
    def direction(self) -> str:
        """Such as "infrared to visible"."""
        return f"{self.query} to {self.gallery}"


class Labels(NamedTuple):
    """What is known of the images of both sides."""

    query_person: np.ndarray  # int64 [Q]
    gallery_person: np.ndarray  # int64 [G]
    query_camera: np.ndarray | None  # int64 [Q]
    gallery_camera: np.ndarray | None  # int64 [G]
    query_name: Sequence[str] | None  # Q
    gallery_name: Sequence[str] | None  # G

    def take(self, query: Any, gallery: Any) -> "Labels":
        """The labels of some rows (int arrays); None takes all of a side."""
        return Labels(
            _take(self.query_person, query),
            _take(self.gallery_person, gallery),
            _take(self.query_camera, query),
            _take(self.gallery_camera, gallery),
            _take(self.query_name, query),
            _take(self.gallery_name, gallery),
        )


def _take(values: Any, rows: np.ndarray | None) -> Any:
    if values is None or rows is None:
        return values
    if isinstance(values, np.ndarray):
        return values[rows]
    return [values[row] for row in rows.tolist()]


class Plan(NamedTuple):
    """Which images each trial ranks; None stands for every row, or every place."""

    query: np.ndarray | None  # int [q] rows of queries that some trial uses
    gallery: np.ndarray | None  # int [g] rows of the gallery that some trial uses
    # for each trial: places among `query` and, ascending, among `gallery`
    trials: tuple[tuple[np.ndarray | None, np.ndarray | None], ...]

    def queries(self, count: int) -> list[np.ndarray]:
        """For each trial, int [q]: its rows among all `count` queries."""
        rows = np.arange(count) if self.query is None else self.query
        return [rows if places is None else rows[places] for places, _ in self.trials]


def make_labels(
    queries: int,
    images: int,
    *,
    query_person: Any,
    gallery_person: Any,
    query_camera: Any = None,
    gallery_camera: Any = None,
    query_name: Sequence[str] | None = None,
    gallery_name: Sequence[str] | None = None,
) -> Labels:
    """Checks labels of `queries` query images and `images` gallery images."""
    for what, names, count in (("gallery", gallery_name, images), ("query", query_name, queries)):
        if names is not None and len(names) != count:
            raise ValueError(f"{what}_name has {len(names)} names for {count} rows of features")

    def cameras(camera: Any, count: int, what: str) -> np.ndarray | None:
        return None if camera is None else check_ids(camera, count, what)

    return Labels(
        check_ids(query_person, queries, "query_person"),
        check_ids(gallery_person, images, "gallery_person"),
        cameras(query_camera, queries, "query_camera"),
        cameras(gallery_camera, images, "gallery_camera"),
        query_name,
        gallery_name,
    )


def make_plan(
    protocol: str,
    rule: Protocol,
    labels: Labels,
    draw: str,
    trials: Sequence[int],
    permutations: Permutations | None = None,
) -> Plan:
    """Draws what the protocol draws.

    Args:
      protocol: its name, for error messages.
      rule: the protocol.
      labels: of every image.
      draw: "agw" or "official"; "agw" is of no effect where nothing is drawn.
      trials: their numbers, from 0.
      permutations: for "official".

    Raises:
      ValueError: what the protocol needs is missing, or is not what it expects.
    """
    known = rule.draws or ("agw", "all")
    if draw not in known:
        raise ValueError(
            f"{protocol} has no gallery {draw!r}, expected {' or '.join(known)}"
            + ("" if rule.drawn else ", which make no difference: nothing is drawn")
        )
    if not len(trials) or min(trials) < 0:
        raise ValueError(f"there are {len(trials)} trials, expected at least 1, numbered from 0")
    if not rule.drawn and list(trials) != [0]:
        raise ValueError(
            f"{protocol} draws nothing, so it has one trial, got {len(trials)}; leave `trials` "
            "out, and score each model or split by itself (metrics.combine averages over them)"
        )
    _check_cameras(protocol, rule, labels)
    if rule.drawn is None or rule.shots is None:
        return Plan(None, None, ((None, None),))
    person, camera, name = (
        (labels.query_person, labels.query_camera, labels.query_name)
        if rule.drawn == "query"
        else (labels.gallery_person, labels.gallery_camera, labels.gallery_name)
    )
    if name is None:
        raise ValueError(
            f"{protocol} needs {rule.drawn}_name, got None: its draw goes by the names of the "
            "images, such as cam1/0006/0025"
        )
    if camera is None:  # for the type checker; `_check_cameras` has refused it
        raise ValueError(f"{protocol} needs {rule.drawn}_camera, got None")
    rows, places = draw_trials(
        draw,
        person,
        camera,
        name,
        cameras=rule.draw_cameras,
        shots=rule.shots,
        trials=trials,
        permutations=permutations,
        people=labels.gallery_person if rule.drawn == "query" else labels.query_person,
    )
    if not len(rows):
        raise ValueError(
            f"no {rule.drawn} image is from a camera of {protocol} {list(rule.draw_cameras)}; the "
            f"pool's cameras are {np.unique(camera).tolist()}"
        )
    if rule.drawn == "query":
        return Plan(rows, None, tuple((p, None) for p in places))
    return Plan(None, rows, tuple((None, p) for p in places))


def _check_cameras(protocol: str, rule: Protocol, labels: Labels) -> None:
    for what, known, camera in (
        ("query", rule.query_cameras, labels.query_camera),
        ("gallery", rule.gallery_cameras, labels.gallery_camera),
    ):
        if known is None:
            continue
        if camera is None:
            why = [f"it draws images of each camera of its {rule.drawn}"] * (rule.drawn == what)
            raise ValueError(
                f"{protocol} needs {what}_camera, got None: "
                + "; ".join([*why, *([rule.explain] if rule.exclude else [])])
            )
        if len(other := np.setdiff1d(camera, known)):
            raise ValueError(
                f"{what} of {protocol}: got images of camera {other.tolist()}, expected only "
                f"{list(known)}; are query and gallery swapped, or is this another data set's "
                "protocol?"
            )
