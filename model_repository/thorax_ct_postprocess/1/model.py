"""Written by `tritome build`; change the bundle and build again instead."""

from ensemble_builder.runtime.postprocess import Postprocess

TritonPythonModel = Postprocess
