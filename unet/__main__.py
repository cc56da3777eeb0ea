"""Entry of `python -m unet` and of the `unet` script.

python -m unet train --synth-data --run-name first-run
python -m unet train --data kaggle_3m --image-size 128 --run-name first-128
python -m unet evaluate --weights first-128.safetensors
python -m unet predict --weights first-128.safetensors data/kaggle_3m --overlay
"""

import sys


def main() -> int:
    """Run the command line of this process. Returns its exit code."""
    try:
        from unet.cli import main as run
    except KeyboardInterrupt:  # the import takes a moment
        print("Interrupted.", file=sys.stderr)
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
