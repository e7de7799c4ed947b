"""Marks voxels above 0 HU: the smallest pipeline that speaks the gateway's tensors.

What a test wants of it stands in RESCALE's first row where the slope is negative, which no
CT has: -1 sleeps for `intercept` seconds first, -2 refuses the input, -3 kills its own
process, -4 breaks like a program with a mistake.
"""

import os
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Triton's Python backend looks for this name."""

    def execute(self, requests):
        """One mask per request."""
        return [self._one(request) for request in requests]

    def _one(self, request):
        image = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy()
        rescale = pb_utils.get_input_tensor_by_name(request, "RESCALE").as_numpy()
        affine = pb_utils.get_input_tensor_by_name(request, "AFFINE").as_numpy()
        wish, amount = rescale[0]
        if wish == -1:
            time.sleep(amount)
        if wish == -2:
            error = pb_utils.TritonError(
                "too_thin: fewer slices than it takes", pb_utils.TritonError.INVALID_ARG
            )
            return pb_utils.InferenceResponse(error=error)
        if wish == -3:
            os._exit(1)
        if wish == -4:
            raise RuntimeError("a mistake in the model")
        assert affine.shape == (4, 4)
        slope = np.abs(rescale[:, 0])[:, None, None]
        intercept = np.where(wish == -1, 0.0, rescale[:, 1])[:, None, None]
        mask = (image * slope + intercept > 0).astype(np.uint8)
        return pb_utils.InferenceResponse([pb_utils.Tensor("MASK", mask)])
