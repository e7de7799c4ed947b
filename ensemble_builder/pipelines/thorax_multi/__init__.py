"""The built-in pipeline thorax_multi: lung_ct and thorax_ct beside each other, merged."""
