"""How the built-in networks are trained and measured: what lung_ct and thorax_ct share."""
