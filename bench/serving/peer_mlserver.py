"""MLServer's custom runtime as its documentation shows it, with the NumPy codec."""

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

from serving import session as bare


class Runtime(MLModel):
    """One ONNX file, named by ``parameters.uri``."""

    async def load(self) -> bool:
        """Open the session."""
        self.session = bare.opened(self.settings.parameters.uri)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """One inference."""
        values = self.decode(payload.inputs[0], default_codec=NumpyCodec)
        output = self.session.run(["y"], {"x": values.astype("float32", copy=False)})[0]
        return InferenceResponse(
            model_name=self.name, model_version=self.version,
            outputs=[NumpyCodec.encode_output("y", output)],
        )  # fmt: skip
