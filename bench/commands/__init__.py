"""The commands under `tandem bench`: a module each, found by its name when it is used."""
