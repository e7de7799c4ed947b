"""Written by `tritome build`; change the bundle and build again instead."""

from ensemble_builder.runtime.preprocess import Preprocess

TritonPythonModel = Preprocess
