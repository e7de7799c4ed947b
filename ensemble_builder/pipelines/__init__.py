"""Built-in pipelines: one MONAI bundle per folder."""
