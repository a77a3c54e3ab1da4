"""`python -m mmtune` and `torchrun -m mmtune`: the command line."""

import sys

from mmtune.cli import main

sys.exit(main())
