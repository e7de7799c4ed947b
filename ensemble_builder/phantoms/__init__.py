"""Made-up patients: thorax phantoms with true lung labels, for training, tests and the demo."""

from ensemble_builder.phantoms.acquisition import Acquisition
from ensemble_builder.phantoms.patient import Patient
from ensemble_builder.phantoms.thorax import ThoraxPhantom, random_phantom, thorax_phantom

__all__ = ["Acquisition", "Patient", "ThoraxPhantom", "random_phantom", "thorax_phantom"]
