"""Training from a checkout: `python train.py fit -c configs/demo/image.yaml`, the same program as `mmtok train`."""

from mmtok.training.cli import main

if __name__ == "__main__":  # data workers import this file under another name (forkserver, spawn)
    main()
