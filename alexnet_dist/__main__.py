"""`python -m alexnet_dist COMMAND`, and `accelerate launch -m alexnet_dist train`."""

from alexnet_dist.commands.main import main

if __name__ == "__main__":
    main(prog="python -m alexnet_dist")
