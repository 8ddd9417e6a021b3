"""LitServe as its documentation shows it: one worker, JSON in and out.

Usage: ``peer_litserve.py MODEL PORT``.
"""

import sys

import litserve
import numpy as np

from serving import session as bare


class Api(litserve.LitAPI):
    """The four methods that LitServe asks for."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self._model = model

    def setup(self, device: str) -> None:
        """In the worker: load."""
        self.session = bare.opened(self._model)
        self.shape = self.session.get_inputs()[0].shape

    def decode_request(self, request: dict) -> np.ndarray:
        """JSON to tensor."""
        return np.array(request["input"], np.float32).reshape(self.shape)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """One inference."""
        return self.session.run(["y"], {"x": x})[0]

    def encode_response(self, output: np.ndarray) -> dict:
        """Tensor to JSON."""
        return {"output": output.ravel().tolist()}


def main() -> None:
    """Serve until the process ends."""
    model, port = sys.argv[1:]
    server = litserve.LitServer(Api(model), accelerator="cpu")
    server.run(
        host="127.0.0.1", port=int(port), generate_client_file=False,
        log_level="warning",
    )  # fmt: skip


if __name__ == "__main__":
    main()
