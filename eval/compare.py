"""Several tokenizers on the same shards by the same protocol: one table, rate beside quality, with curves and JSON."""

import sys

from mmtok.compare import command_line

if __name__ == "__main__":
    sys.exit(command_line(__doc__))
