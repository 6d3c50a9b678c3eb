"""Images of digits: MNIST where RNNJAX_DATA has it, else scikit-learn's digits of 8 x 8 pixels.

The folder RNNJAX_DATA holds mnist/train-images-idx3-ubyte.gz and its three companions, from
http://yann.lecun.com/exdb/mnist or a mirror of it.
"""

import gzip
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from sklearn.datasets import load_digits

from common import data
from common.command_line import Option, option

MNIST = "sequential MNIST"


class Digits(NamedTuple):
    """Pixels [examples, T, 1] from 0 to 1, and labels."""

    xs: Any
    labels: Any


class Epochs(NamedTuple):
    """How often the training digits are read by default. The small set has few, so it is read more often."""

    mnist: float
    small: float

    def of(self, name: str) -> float:
        """For the digits that `read_digits` calls so."""
        return self.mnist if name == MNIST else self.small

    def option(self) -> Option:
        """`--epochs`; None where it is not given."""
        over = f"{self.mnist} over MNIST, {self.small} over the small digits"
        return option("--epochs", type=type(self.mnist), help=f"passes over the training data; default: {over}")


def read_digits() -> tuple[Digits, Digits, str]:
    """To train on, to test on, and what they are called."""
    mnist = data.find("mnist", "scikit-learn's digits, 8 x 8, stand in for MNIST")
    if mnist is None:
        return (*small_digits(), "8 x 8 digits")
    sets = [Digits(read_images(mnist, name), read_labels(mnist, name)) for name in ("train", "t10k")]
    return sets[0], sets[1], MNIST


def read_images(folder: Path, name: str) -> np.ndarray:
    content = gzip.decompress((folder / f"{name}-images-idx3-ubyte.gz").read_bytes())
    return np.frombuffer(content, np.uint8, offset=16).reshape(-1, 784, 1) / np.float32(255)


def read_labels(folder: Path, name: str) -> np.ndarray:
    content = gzip.decompress((folder / f"{name}-labels-idx1-ubyte.gz").read_bytes())
    return np.frombuffer(content, np.uint8, offset=8).astype(np.int32)


def small_digits() -> tuple[Digits, Digits]:
    """1,797 digits of 64 pixels; one in five is to test on."""
    images, labels = load_digits(return_X_y=True)
    digits = Digits((images / 16).astype(np.float32)[:, :, None], labels.astype(np.int32))
    tested = np.arange(len(labels)) % 5 == 0
    return jax.tree.map(lambda leaf: leaf[~tested], digits), jax.tree.map(lambda leaf: leaf[tested], digits)
