"""Tells ctypes where libraries are that no loader's cache lists.

tinygrad's local CUDA device asks `ctypes.util.find_library`, which needs the loader's cache or a C
compiler. OUTBOARD_LIBRARIES is a JSON object of names and paths. Python imports this file by
itself where its folder is in PYTHONPATH.
"""

import ctypes.util
import json
import os

_told = json.loads(os.environ.get("OUTBOARD_LIBRARIES", "{}"))
_find = ctypes.util.find_library
ctypes.util.find_library = lambda name: _told.get(name) or _find(name)
