"""Two contrasts in, two masks that overlap and two scores out: for tests of the request."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Triton's Python backend looks for this name."""

    def execute(self, requests):
        """Bright in the first, brighter in the second than in the first; means of both."""
        return [self._one(request) for request in requests]

    def _one(self, request):
        image, rescale, affine = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy()
            for name in ("IMAGE", "RESCALE", "AFFINE")
        )
        assert affine.shape == (4, 4)
        slope, intercept = rescale[..., 0][..., None, None], rescale[..., 1][..., None, None]
        first, second = image * slope + intercept
        masks = np.stack([first > 0, second > first]).astype(np.uint8)
        scores = np.array([first.mean(), second.mean()], dtype=np.float32)
        tensors = [pb_utils.Tensor("MASKS", masks), pb_utils.Tensor("SCORES", scores)]
        return pb_utils.InferenceResponse(tensors)
