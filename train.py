"""Training from a checkout: `python train.py fit -c configs/demo/image.yaml`, the same program as `mmtok train`."""

from mmtok.training.cli import main

main()
