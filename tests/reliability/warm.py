"""What each forked command would do anew: importing this brings the libraries and reads a command line once."""

import gc

import sklearn.datasets  # noqa: F401 - of the digits

import callbacks  # noqa: F401
from layersim.commands.sweep_check import Parsed
from tests import tiny

Parsed(["fit", *tiny.FLAGS])
gc.collect()
gc.freeze()  # else each child's collector walks through all of it, and copies the pages
