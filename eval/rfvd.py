"""Frechet video distance of reconstructions at every length, and what they cost in quality of frames and flicker.

Three networks, each its own metric (see `mmtok.metrics.video.fvd`): rfvd_i3dts (default), rfvd_i3dtats, rfvd_videomae.
Their weights are found in --weights, MMTOK_WEIGHTS_DIR or torch.hub's cache; nothing is downloaded.
"""

import sys

from mmtok.evaluate import command_line

if __name__ == "__main__":
    sys.exit(command_line(__doc__, metrics=("psnr", "rfvd_i3dts"), codecs=()))
