"""One 2-D image of floats in, its bright part and two scores out: for tests of the request."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Triton's Python backend looks for this name."""

    def execute(self, requests):
        """Above 0 after rescaling; the mean, and no number where the mean is negative."""
        return [self._one(request) for request in requests]

    def _one(self, request):
        image, rescale = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy()
            for name in ("IMAGE", "RESCALE")
        )
        values = image * rescale[0, 0] + rescale[0, 1]
        mean = values.mean()
        scores = np.array([mean, mean if mean > 0 else np.nan], dtype=np.float32)
        tensors = [
            pb_utils.Tensor("MASK", (values > 0).astype(np.uint8)),
            pb_utils.Tensor("SCORES", scores),
        ]
        return pb_utils.InferenceResponse(tensors)
