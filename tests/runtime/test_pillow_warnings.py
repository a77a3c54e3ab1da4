"""Pillow's warnings are ignored where the command line or a decode worker asks for it, not by an import."""

import subprocess
import sys

CODE = """
import warnings
before = list(warnings.filters)
import mmtune.modalities.image, mmtune.modalities.picture_file
from mmtune.runtime.pillow_warnings import ignore_pillow_warnings
print([f for f in warnings.filters if f not in before and "PIL" in str(f)])
ignore_pillow_warnings()
print(len([f for f in warnings.filters if f not in before and "PIL" in str(f)]))
"""


def test_an_import_leaves_the_warning_filters_alone():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "1"]
