"""The built-in bundle thorax_ct: heart, aorta, airways and spine in chest CT, with its training."""
