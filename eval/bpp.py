"""What tokens cost at every length: nominal bits, entropy bits, whole files, and codebook usage (with PSNR)."""

import sys

from mmtok.evaluate import command_line

if __name__ == "__main__":
    sys.exit(command_line(__doc__, metrics=("psnr",), codecs=()))
