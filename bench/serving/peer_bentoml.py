"""BentoML as its documentation shows it: a service with one API that takes an array.

``bentoml serve serving.peer_bentoml:Service``; the model's path is in BENCH_MODEL.
"""

import os

import bentoml
import numpy as np

from serving import session as bare


@bentoml.service(logging={"access": {"enabled": False}})
class Service:
    """One worker, as by default."""

    def __init__(self) -> None:
        self.session = bare.opened(os.environ["BENCH_MODEL"])
        self.shape = self.session.get_inputs()[0].shape

    @bentoml.api
    def predict(self, input: np.ndarray) -> np.ndarray:
        """One inference."""
        values = input.astype(np.float32).reshape(self.shape)
        return self.session.run(["y"], {"x": values})[0].ravel()
