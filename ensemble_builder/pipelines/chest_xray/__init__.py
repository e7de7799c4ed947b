"""The built-in chest radiograph bundle: four findings, one score each."""
