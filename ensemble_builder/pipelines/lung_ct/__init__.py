"""The built-in bundle `lung_ct`: left and right lung in chest CT, and how it is made."""
