"""What each forked command would do anew: importing this brings the libraries and reads a command line once."""

import gc

import sklearn.datasets  # of the digits
import sklearn.model_selection  # noqa: F401 - of their split

import callbacks  # noqa: F401
from layersim.commands.sweep_check import Parsed
from tests import tiny
from tests.reliability import painting

Parsed(["fit", *tiny.FLAGS])
painting.start()
gc.collect()
gc.freeze()  # else each child's collector walks through all of it, and copies the pages
