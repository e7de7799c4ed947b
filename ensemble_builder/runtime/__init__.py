"""Code that runs inside Triton; each generated model.py names one class from here."""
