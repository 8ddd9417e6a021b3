"""Writes one of scikit-learn's digits as the PNG file that a camera would deliver."""

import sys
from pathlib import Path

from PIL import Image

from calibration.sets.digits import validation


def main() -> None:
    images, labels = validation()
    index, path = int(sys.argv[1]), Path(sys.argv[2])
    Image.fromarray(images[index]).save(path)
    sys.stdout.write(f"{path}: a {labels[index]}\n")


if __name__ == "__main__":
    main()
