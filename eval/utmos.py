"""UTMOS22 strong of reconstructions at every rate, below the row of the originals, one unpadded utterance at a time.

Needs the published weights: --weights, MMTOK_WEIGHTS_DIR, or a hub cache. Without them, --metrics distillmos dnsmos
give other metrics under their own names.
"""

import sys

from mmtok.evaluate import command_line

if __name__ == "__main__":
    sys.exit(command_line(__doc__, metrics=("utmos",), codecs=()))
