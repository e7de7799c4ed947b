"""MONAI bundle or pipeline YAML in, NVIDIA Triton ensemble out."""
