"""FastAPI: a handler as people write it, and the quickest that a route can be.

Usage: ``peer_fastapi.py MODEL PORT SOCKET``; uvicorn with uvloop and httptools.
"""

import socket
import sys

import numpy as np
import orjson
import uvicorn
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

from serving import session as bare


class Input(BaseModel):
    """The body, checked number by number."""

    input: list[float]


class Output(BaseModel):
    """The answer."""

    output: list[float]


def application(model: str) -> FastAPI:
    """Three routes to one session."""
    session = bare.opened(model)
    shape = session.get_inputs()[0].shape
    app = FastAPI()

    def infer(values: np.ndarray) -> np.ndarray:
        return session.run(["y"], {"x": values.reshape(shape)})[0].ravel()

    @app.post("/predict")
    async def predict(body: Input) -> Output:
        return Output(output=infer(np.array(body.input, np.float32)).tolist())

    @app.post("/raw")
    async def raw(request: Request) -> Response:
        given = orjson.loads(await request.body())["input"]
        output = infer(np.array(given, np.float32))
        text = orjson.dumps({"output": output}, option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(text, media_type="application/json")

    @app.post("/binary")
    async def binary(request: Request) -> Response:
        output = infer(np.frombuffer(await request.body(), np.float32))
        return Response(output.tobytes(), media_type="application/octet-stream")

    return app


def main() -> None:
    """Serve on both until the process ends."""
    model, port, path = sys.argv[1:]
    tcp, unix = socket.socket(), socket.socket(socket.AF_UNIX)
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    tcp.bind(("127.0.0.1", int(port)))
    unix.bind(path)
    config = uvicorn.Config(application(model), access_log=False, log_level="warning")
    uvicorn.Server(config).run([tcp, unix])


if __name__ == "__main__":
    main()
