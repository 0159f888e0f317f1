"""Files that appear whole or not at all, whoever else writes there, and their content hashes.

refusals    what the system refuses, as one line
places      the cache; where a name leads
locks       who may write, decided by the system: a lock ends when its holder dies, however it dies
temporary   hidden names to write under, and what killed commands left under theirs
exchange    two names change places in one step
folders     an output folder: new, or in the place of an earlier result
one_file    an output file
content     hashes and second names
records     small records by the states of files
verified    which hashes are known because nothing was written since
"""

from pie_engine.files.content import link_or_copy, sha256_file
from pie_engine.files.folders import check_folder, new_folder
from pie_engine.files.one_file import check_file, write_file
from pie_engine.files.places import cache_root
from pie_engine.files.refusals import writing
from pie_engine.files.temporary import Leftover, clean, find_leftovers, locked, temporary_name
from pie_engine.files.verified import find_mismatch

__all__ = [
    "Leftover",
    "cache_root",
    "check_file",
    "check_folder",
    "clean",
    "find_leftovers",
    "find_mismatch",
    "link_or_copy",
    "locked",
    "new_folder",
    "sha256_file",
    "temporary_name",
    "write_file",
    "writing",
]
