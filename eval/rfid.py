"""Frechet distance of reconstructions at every length: rfid with the real Inception weights.

Without them, --metrics fd_vgg16 gives the stand-in, which is another metric under its own name.
"""

import sys

from mmtok.evaluate import command_line

if __name__ == "__main__":
    sys.exit(command_line(__doc__, metrics=("rfid",), codecs=()))
