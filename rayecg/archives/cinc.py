"""The 12-lead collections of the PhysioNet/CinC Challenges 2020 and 2021.

Sources: Perez Alday et al. 2020, Physiol. Meas. 41:124003; Reyna et al. 2022, Physiol. Meas.
43:084001. A record is a header and a MATLAB file whose samples start at byte 24 (format 16+24); what
is known of it stands in comments of the header.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from rayecg.archives.folder import WfdbFolder
from rayecg.archives.ptbxl import OVER_89, OVER_89_AS
from rayecg.archives.wfdb_header import MAX_HEADER_BYTES
from rayecg.core.errors import RecordError
from rayecg.core.index_file import IndexFile
from rayecg.core.shard_format import index_table

#: `#Age: 53`, `# Age: 53`, and LUDB's `#<age>: 53`.
_COMMENT = re.compile(r"^#[ \t]*<?(age|sex|dx)>?[ \t]*:(.*)", re.IGNORECASE | re.MULTILINE)
#: An identifier of SNOMED CT has 6 to 18 digits.
_SNOMED = re.compile(r"(?<![\w.+-])\d{6,18}(?![\w.])", re.ASCII)
_SEXES = {"m": "M", "male": "M", "f": "F", "female": "F"}
_OLDEST = 130
#: Folders that hold or divide a source, and are none: `training/georgia/g1`, `WFDBRecords/01/010`.
_NO_SOURCE = re.compile(r"g?\d+|(training|validation|test|data|records|wfdb|_)+", re.IGNORECASE)


class Cinc(WfdbFolder):
    """Every header below a folder, with the age, sex and SNOMED CT codes that it states.

    A record is called by its name, or by its relative path where another has the same name. `site`
    is the source's folder (`georgia`, `cpsc_2018`). `patient_id` is unknown: the sources share no
    such key, some cut several records from one person's recording (INCART: 74 from 32), and to call
    each record a patient would let the audit pass what nobody knows.
    """

    releases: ClassVar = {
        "2020 training": 43_101,
        "2021 training": 88_253,
        "cpsc_2018": 6_877,
        "cpsc_2018_extra": 3_453,
        "st_petersburg_incart": 74,
        "ptb": 516,
        "ptb-xl": 21_837,
        "georgia": 10_344,
        "chapman_shaoxing": 10_247,
        "ningbo": 34_905,
    }

    def index(self) -> pa.Table:
        """List the records by relative path."""
        return pa.concat_tables(index for index, _ in self.listing())

    def listing(self) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """Yield the index with size and time of each record's files, added up.

        What a header does not state, or not so, is null; 8 bytes a record are in memory meanwhile.
        """
        hashes: list[np.ndarray] = []
        paths = IndexFile(self._paths(hashes))
        # Counted over all, so that no id depends on `limit`.
        hash_N = np.concatenate(hashes)
        hashes.clear()
        hash_N.sort()
        left = self.settings.limit
        for piece in paths.pieces():
            piece = piece.slice(0, left)
            own_P = piece["hash"].to_numpy()
            ends = (np.searchsorted(hash_N, own_P, side) for side in ("right", "left"))
            is_only_P = np.subtract(*ends) == 1
            index = self._index_of(piece["path"].to_pylist(), is_only_P.tolist())
            yield index, np.column_stack([piece["size"], piece["time"]])
            if left is not None:
                left -= len(own_P)
                if left <= 0:
                    return

    def _paths(self, hashes: list[np.ndarray]) -> Iterator[pa.Table]:
        """Yield the records' paths and facts with hashes of their names, which are left in `hashes`, too."""
        for paths, facts_R2 in self._listed(None):
            names = (path.rpartition("/")[2] for path in paths.to_pylist())
            hashes.append(np.array([_hash(name) for name in names], np.int64))
            size_R, time_R = facts_R2.T
            columns = {"path": paths, "hash": hashes[-1], "size": size_R, "time": time_R}
            yield pa.table(columns)

    def _index_of(self, paths: list[str], is_only: list[bool]) -> pa.Table:
        rows = []
        for path, only, stated in zip(
            paths, is_only, self.map_files(self._stated, paths), strict=True
        ):
            above, _, name = path.rpartition("/")
            record_id = name if only else path
            rows.append({"record_id": record_id, "path": path, "site": source_of(above), **stated})
        return index_table(rows)

    def _stated(self, path: str) -> dict[str, Any]:
        try:
            raw, _ = self.folder.read(f"{path}.hea", limit=MAX_HEADER_BYTES)
        except RecordError:  # the shards stage meets the same error and gives the record its row
            return {}
        # Whatever the encoding, what is looked for is ASCII.
        return stated_in(raw.decode("latin-1"))


def _hash(name: str) -> int:
    """Give 64 bits of a name, the same everywhere: two names of one hash would be told by their paths."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), signed=True)


def stated_in(header: str) -> dict[str, Any]:
    """Give `age` (years), `sex` (`M`, `F`) and `codes` from a header's comments, None if not stated.

    Of two ages or sexes the first counts; the codes of several lines are put together.
    """
    found: dict[str, list[str]] = {"age": [], "sex": [], "dx": []}
    start = header.find("#")
    if start >= 0:
        for match in _COMMENT.finditer(header, start):
            found[match[1].lower()].append(match[2])
    codes = _SNOMED.findall(",".join(found["dx"]))
    return {
        "age": age_in_years(found["age"][0]) if found["age"] else None,
        "sex": sex_of(found["sex"][0]) if found["sex"] else None,
        "codes": list(dict.fromkeys(codes)) or None,
    }


def age_in_years(text: str) -> float | None:
    """Give an age, None where the text states none that can be; "over 89" is 90.

    Publishers write that as `>89` (LUDB) or 300 (PTB-XL).
    """
    text = text.strip()
    if text == ">89":
        return OVER_89_AS
    try:
        age = float(text)
    except ValueError:
        return None
    if age == OVER_89:
        return OVER_89_AS
    return age if 0 <= age <= _OLDEST else None


def sex_of(text: str) -> str | None:
    """Give `M` or `F`, None where the text states neither."""
    return _SEXES.get(text.strip().lower())


def source_of(above: str) -> str | None:
    """Give the innermost folder of a path that names a source, None if there is none."""
    for part in reversed(above.split("/")):
        if part and not _NO_SOURCE.fullmatch(part):
            return part
    return None
