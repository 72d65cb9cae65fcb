"""The one table that an evaluation prints."""

import itertools
import math
import textwrap
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from vireid_jax.metrics.protocols import PROTOCOLS
from vireid_jax.metrics.results import CORRUPTED

SIGMAS = 3.0  # how far above a random ranking an mAP must lie to say anything
WIDTH = 100  # of notes, in characters
COLUMNS = ("R1", "R10", "R20", "mAP", "mINP")

Key = tuple[str, str]  # (protocol, feature)


class _Heading(NamedTuple):
    """What rows under one heading share; the numbers of another heading are another matter."""

    protocol: str
    gallery: str
    cmc: str
    ties: str
    corrupt: str | None

    def __str__(self) -> str:
        marks = [self.protocol if self.corrupt is None else f"{self.protocol} {CORRUPTED}"]
        rule = PROTOCOLS.get(self.protocol)
        if rule is not None and rule.cmc != self.cmc:
            marks.append(f"CMC by {'people' if self.cmc == 'id' else 'images'}")
        if self.gallery == "official":
            marks.append("official")
        if self.ties != "stable":
            marks.append(f"{self.ties} ties")
        return ", ".join(marks)


def near_chance(result: Mapping[str, Any]) -> bool:
    """Whether the mAP of an `evaluate` result is not 3 sigma above a random ranking's."""
    chance = result["chance"]
    return result["metrics"]["mAP"] < chance["mAP"] + SIGMAS * chance["mAP_sigma"]


def format_table(rows: Mapping[Key, Mapping[str, Any]], *, baselines: Collection[str] = ()) -> str:
    """Aligned plain text, at most 100 columns wide for names of ordinary length.

    Args:
      rows: `evaluate` results by (protocol, feature), in the order to print them; rows that
        share protocol, gallery draw, CMC, rule for ties and corruption are grouped. The feature
        of a result with "distance", "flip" or "rerank" says so ("bn, Euclidean", "bn, flip",
        "bn, re-ranked"); flipped and re-ranked rows
        come after the plain ones of their group, whose first row is never one of them.
      baselines: features that are there for comparison ("raw pixels", "untrained"); they
        come last in their group and are not flagged for being near chance.

    Returns:
      The table in percent, a line per group on what was ranked, and a warning that names every
      row whose mAP is within 3 sigma of chance. No newline at the end.

    Raises:
      ValueError: no rows, or rows of one group that were not measured alike.
    """
    groups = _groups(rows, baselines)
    header, lines = _cells(rows, groups, baselines)
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]

    def text(line: list[str]) -> str:
        names = [cell.ljust(width) for cell, width in zip(line[:2], widths, strict=False)]
        values = [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True)]
        return "  ".join([*names, *values]).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    out = [text(header), rule]
    for heading, group in itertools.groupby(lines, key=lambda line: line[0]):
        out += [""] * (len(out) > 2)  # between groups
        for number, line in enumerate(group):
            out.append(text(["" if number else heading, *line[1:]]))
    out.append(rule)
    for note in _notes(rows, groups, baselines):
        out += textwrap.wrap(
            note, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
    return "\n".join(out)


def to_markdown(rows: Mapping[Key, Mapping[str, Any]], *, baselines: Collection[str] = ()) -> str:
    """The same table for a README; see `format_table`."""
    groups = _groups(rows, baselines)
    header, lines = _cells(rows, groups, baselines)
    rule = ["---", "---", *("---:" for _ in header[2:])]
    table = [
        "| " + " | ".join(cell.strip() for cell in line) + " |" for line in [header, rule, *lines]
    ]
    return "\n".join([*table, "", *(f"{n}  " for n in _notes(rows, groups, baselines))])


def _groups(
    rows: Mapping[Key, Mapping[str, Any]], baselines: Collection[str]
) -> dict[_Heading, list[Key]]:
    """The keys of the rows under each heading, in the order to print them."""
    if not rows:
        raise ValueError("there are no rows to print, expected at least one evaluation result")
    groups: dict[_Heading, list[Key]] = {}
    for key, result in rows.items():
        marks = result.get("ties", "stable"), result.get("corrupt")
        heading = _Heading(key[0], result["gallery"], result["cmc"], *marks)
        groups.setdefault(heading, []).append(key)
    # Groups of one protocol stand together; plain rows come first, baselines last.
    protocols = list(dict.fromkeys(key[0] for key in rows))
    order = sorted(groups, key=lambda heading: protocols.index(heading.protocol))
    for heading, keys in groups.items():
        keys.sort(key=lambda key: (key[1] in baselines, *_extras(rows[key])))
        first = _measured(rows[keys[0]])
        for key in keys:
            if (found := _measured(rows[key])) != first:
                raise ValueError(
                    f"rows {keys[0][1]!r} and {key[1]!r} of {heading} were not measured alike: "
                    "(mean over, trials, queries, valid, gallery images, people) is "
                    f"{first} and {found}; print two tables"
                )
    return {heading: groups[heading] for heading in order}


def _extras(result: Mapping[str, Any]) -> tuple[bool, bool]:
    return bool(result.get("rerank")), bool(result.get("flip"))


def _label(feature: str, result: Mapping[str, Any]) -> str:
    """The feature with what was done at test time, where the caller has not said so."""
    feature = feature.removesuffix(f" {CORRUPTED}")  # the heading says it
    reranked, flip = _extras(result)
    if result.get("distance") == "euclidean" and "Euclidean" not in feature:
        feature += ", Euclidean"
    if flip and "flip" not in feature:
        feature += ", flip"
    if reranked and "re-ranked" not in feature:
        scope = result["rerank"]
        feature += ", re-ranked" + (f" ({scope})" if scope != "all" else "")
    return feature


def _cells(
    rows: Mapping[Key, Mapping[str, Any]],
    groups: Mapping[_Heading, list[Key]],
    baselines: Collection[str],
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of cells; the heading is the first cell of every row."""
    lines: list[list[str]] = []
    for heading, keys in groups.items():
        if any(_extras(rows[keys[0]])):  # what leads a group is read as the result
            lines.append([str(heading), "(plain: not scored)", *("-" for _ in COLUMNS), "-"])
        for key in keys:
            result, feature = rows[key], key[1]
            value = {name: _percent(result["metrics"][name]) for name in COLUMNS}
            if len(result["trials"]) > 1:
                value["mAP"] += f" ± {_percent(result['std']['mAP'])}"
            flag = " !" if feature not in baselines and near_chance(result) else ""
            chance = _percent(result["chance"]["mAP"]) + flag
            lines.append([str(heading), _label(feature, result), *value.values(), chance])
    _pad_right(lines, COLUMNS.index("mAP") + 2, " ± ")
    _pad_right(lines, -1, " !")
    return ["protocol", "feature", *COLUMNS, "chance mAP"], lines


def _pad_right(lines: list[list[str]], column: int, mark: str) -> None:
    """Fills cells without what follows the mark, so that the numbers before it stand in line."""
    rests = ["".join(line[column].partition(mark)[1:]) for line in lines]
    width = max(map(len, rests))
    for line, rest in zip(lines, rests, strict=True):
        line[column] += " " * (width - len(rest))


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}" if math.isfinite(fraction) else "-"


def _measured(result: Mapping[str, Any]) -> tuple:
    counts = result["counts"]
    names = ("queries", "valid_queries", "gallery_images", "gallery_ids")
    return (result.get("over"), len(result["trials"]), *(counts[name] for name in names))


def _notes(
    rows: Mapping[Key, Mapping[str, Any]],
    groups: Mapping[_Heading, list[Key]],
    baselines: Collection[str],
) -> list[str]:
    varied = [result for result in rows.values() if len(result["trials"]) > 1]
    over = {result.get("over") or "gallery draws" for result in varied}
    spread = f"mAP ± its standard deviation over {' or '.join(sorted(over))}; " if over else ""
    notes = [f"percent; {spread}queries without a match are left out"]
    for heading, keys in groups.items():
        result = rows[keys[0]]
        runs, trials, queries, valid, images, people = _measured(result)
        some = f"{valid} of {queries}" if valid < queries else f"{queries}"
        if runs is not None:
            what = f"mean over {trials} {runs}"
        elif heading.gallery == "all":
            what = "all images"
        else:
            draw = "" if heading.gallery == "official" else f"{heading.gallery} "  # said already
            what = f"{trials} {draw}draw{'s' if trials > 1 else ''}"
        query, gallery = result["direction"].split(" to ")
        ranks = ", ranks count images" if heading.cmc == "image" else ""
        notes.append(
            f"{heading}: {some} {query} queries, {images} {gallery} images of {people} people, "
            f"{what}{ranks}"
        )
    low: dict[str, list[str]] = {}
    for heading, keys in groups.items():
        for key in keys:
            if key[1] not in baselines and near_chance(rows[key]):
                low.setdefault(str(heading), []).append(_label(key[1], rows[key]))
    if low:
        notes += [
            f"! WARNING: MAP IS AT THE CHANCE LEVEL (within {SIGMAS:.0f} sigma); are the trained "
            "weights loaded,",
            "  and the identity numbers those of the images? It is so for",
            *(f"  {heading}: {'; '.join(labels)}" for heading, labels in low.items()),
        ]
    return notes
