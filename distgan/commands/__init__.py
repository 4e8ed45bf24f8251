"""What the commands do; the modules of the same names above are their doors."""
