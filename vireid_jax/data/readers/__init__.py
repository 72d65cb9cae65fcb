"""Readers of the released data sets and of one's own folders: what is there, and is it all?

A reader is a module of this package. It holds all that is known of its data set:

  TITLE, DESCRIPTION          its name for people, and one sentence
  LAYOUT, ENTRIES             its tree in words, and what its root holds
  AGREEMENT                   where it is obtained
  PUBLISHED                   (people, visible, infrared images) that papers train on, or None
  looks_like(root, folders)   whether a folder with these sub-folders is the data set
  scan(root, *, strict=True) -> Listing    FileNotFoundError, or TreeError for another tree
  check_options(**options)    ValueError for an option of `split` that no tree could honor
  split(listing, *, ...) -> Split    its keyword-only parameters are the set's options of `load`;
                              infrared queries, visible gallery

A new reader needs one line in `READERS` and two in configs/common.py. `scan` looks at names and
lists alone and compares them with the release (`Listing.checks`). With strict=True any difference
is a `TreeError` that shows it; with strict=False it becomes a line of `Listing.problems`. `split`
never looks at the images, which stay where they are (`Records.take`).
"""

from types import ModuleType

from vireid_jax.data.readers import folders, llcm, regdb, sysu

READERS: dict[str, ModuleType] = {"sysu": sysu, "regdb": regdb, "llcm": llcm, "folders": folders}


def get_reader(name: str) -> ModuleType:
    """The reader of a data set; ValueError if there is none of that name."""
    if name not in READERS:
        raise ValueError(f"no reader for {name!r}, expected one of {', '.join(READERS)}")
    return READERS[name]
