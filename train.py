"""Train AlexNet: `accelerate launch train.py --config lecture`; `python train.py --help` explains every option."""

import sys

from alexnet_dist.commands.main import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]], prog="train.py")
