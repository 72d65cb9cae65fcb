"""The one table that an evaluation prints."""

import math
from collections.abc import Collection, Mapping
from typing import Any

SIGMAS = 3.0  # how far above a random ranking an mAP must lie to say anything
COLUMNS = ("R1", "R10", "R20", "mAP", "mINP")

Key = tuple[str, str]  # (protocol, feature)


def near_chance(result: Mapping[str, Any]) -> bool:
    """Whether the mAP of an `evaluate` result is not 3 sigma above a random ranking's."""
    chance = result["chance"]
    return result["metrics"]["mAP"] < chance["mAP"] + SIGMAS * chance["mAP_sigma"]


def format_table(rows: Mapping[Key, Mapping[str, Any]], *, baselines: Collection[str] = ()) -> str:
    """Aligned plain text, at most 100 columns wide for names of ordinary length.

    Args:
      rows: `evaluate` results by (protocol, feature), in the order to print them; rows of
        one protocol are grouped.
      baselines: features that are there for comparison ("raw pixels", "untrained"); they
        come last in their group and are not flagged for being near chance.

    Returns:
      The table in percent, a line per protocol on what was ranked, and a warning for every
      row whose mAP is within 3 sigma of chance. No newline at the end.

    Raises:
      ValueError: no rows, or rows of one protocol that were not measured alike.
    """
    header, lines, groups = _cells(rows, baselines)
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]

    def text(line: list[str]) -> str:
        names = [cell.ljust(width) for cell, width in zip(line[:2], widths, strict=False)]
        values = [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True)]
        return "  ".join([*names, *values]).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    out = [text(header), rule]
    at = 0
    for number, size in enumerate(groups.values()):
        if number:
            out.append("")
        for first, line in enumerate(lines[at : at + size]):
            out.append(text(line if not first else ["", *line[1:]]))
        at += size
    return "\n".join([*out, rule, *_notes(rows, groups, baselines)])


def to_markdown(rows: Mapping[Key, Mapping[str, Any]], *, baselines: Collection[str] = ()) -> str:
    """The same table for a README; see `format_table`."""
    header, lines, groups = _cells(rows, baselines)
    rule = ["---", "---", *("---:" for _ in header[2:])]
    table = [
        "| " + " | ".join(cell.strip() for cell in line) + " |" for line in [header, rule, *lines]
    ]
    return "\n".join([*table, "", *(f"{n}  " for n in _notes(rows, groups, baselines))])


def _cells(
    rows: Mapping[Key, Mapping[str, Any]], baselines: Collection[str]
) -> tuple[list[str], list[list[str]], dict[str, int]]:
    """Header, rows of cells, and how many rows each protocol has."""
    if not rows:
        raise ValueError("there are no rows to print, expected at least one evaluation result")
    protocols = list(dict.fromkeys(protocol for protocol, _ in rows))
    lines, groups = [], {}
    for protocol in protocols:
        features = [feature for name, feature in rows if name == protocol]
        features.sort(key=lambda feature: feature in baselines)  # stable: baselines last
        _check_alike(protocol, {feature: rows[protocol, feature] for feature in features})
        groups[protocol] = len(features)
        for feature in features:
            result = rows[protocol, feature]
            value = {name: _percent(result["metrics"][name]) for name in COLUMNS}
            spread = _percent(result["std"]["mAP"])
            flag = " !" if feature not in baselines and near_chance(result) else ""
            value["mAP"] += f" ± {spread}"
            chance = _percent(result["chance"]["mAP"]) + flag
            lines.append([protocol, feature, *(value[name] for name in COLUMNS), chance])
    if any(line[-1].endswith("!") for line in lines):  # keep the numbers in line
        for line in lines:
            line[-1] = line[-1] if line[-1].endswith("!") else line[-1] + "  "
    return ["protocol", "feature", *COLUMNS, "chance mAP"], lines, groups


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}" if math.isfinite(fraction) else "-"


def _measured(result: Mapping[str, Any]) -> tuple:
    counts = result["counts"]
    names = ("queries", "valid_queries", "gallery_images", "gallery_ids")
    return (
        result["gallery"],
        result["cmc"],
        len(result["trials"]),
        *(counts[name] for name in names),
    )


def _check_alike(protocol: str, results: Mapping[str, Mapping[str, Any]]) -> None:
    first = next(iter(results))
    for feature, result in results.items():
        if _measured(result) != _measured(results[first]):
            raise ValueError(
                f"rows {first!r} and {feature!r} of {protocol} were not measured alike: (gallery, "
                "CMC, trials, queries, valid, gallery images, people) is "
                f"{_measured(results[first])} and {_measured(result)}; print two tables"
            )


def _notes(
    rows: Mapping[Key, Mapping[str, Any]], groups: Mapping[str, int], baselines: Collection[str]
) -> list[str]:
    notes = [
        "percent; mAP ± its standard deviation over gallery draws; "
        "queries without a match are left out"
    ]
    for protocol in groups:
        result = next(result for (name, _), result in rows.items() if name == protocol)
        draw, cmc, trials, queries, valid, images, people = _measured(result)
        some = f"{valid} of {queries}" if valid < queries else f"{queries}"
        notes.append(
            f"{protocol}: {some} queries, {images} gallery images of {people} people, "
            f"{trials} {draw} draw{'s' if trials > 1 else ''}"
            + ("" if cmc == "id" else ", ranks count images")
        )
    for (protocol, feature), result in rows.items():
        if feature not in baselines and near_chance(result):
            notes.append(
                f"! WARNING: {protocol} {feature}: MAP IS AT THE CHANCE LEVEL (within "
                f"{SIGMAS:.0f} sigma);\n  are the trained weights loaded, and the identity "
                "numbers those of the images?"
            )
    return notes
