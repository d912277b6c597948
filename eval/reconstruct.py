"""Reconstruction quality at every length beside JPEG, WebP and AVIF: metrics.json, plots and the report."""

import sys

from mmtok.evaluate import command_line

if __name__ == "__main__":
    sys.exit(command_line(__doc__))
