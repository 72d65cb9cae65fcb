"""Readers of the released data sets and of one's own folders: what is there, and is it all?

A reader is a module of this package with

  TITLE, LAYOUT, AGREEMENT    its name, its tree in words, and where it is obtained
  scan(root, *, strict=True) -> Listing
  check_options(**options)    ValueError for an option of `split` that no tree could honor
  split(listing, **options) -> Split

and is used in this order:

  reader = get_reader("sysu")                    # or READERS["sysu"]
  reader.check_options(val_ids=0)                # cheap: before anything slow
  listing = reader.scan(root, strict=True)       # records.images: absolute paths
  listing = ...                                  # builders, cache: the same rows, other images
  split = reader.split(listing, val_ids=0)

`scan` looks at names and lists alone and opens no image. It compares what it finds with the
release (`Listing.checks`). With strict=True any difference is a `TreeError` that shows it;
with strict=False it becomes a line of `Listing.problems`. What cannot be read at all (another
folder, a list that is missing) is an error in both cases.

`split` never looks at the images: it works on `person`, `camera`, `modality` and
`Listing.part`, and takes rows with `Records.take`, so images that are read on demand stay where
they are. Rows that were left out since (an unreadable image) need no care. `Split.notes` holds
what the division itself has to say; whoever shows it adds `Listing.problems`.
"""

from types import ModuleType

from vireid_jax.data.readers import folders, llcm, regdb, sysu

READERS: dict[str, ModuleType] = {"sysu": sysu, "regdb": regdb, "llcm": llcm, "folders": folders}


def get_reader(name: str) -> ModuleType:
    """The reader of a data set.

    Raises:
      ValueError: there is none of that name.
    """
    if name not in READERS:
        raise ValueError(f"no reader for {name!r}, expected one of {', '.join(READERS)}")
    return READERS[name]
