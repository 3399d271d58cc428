"""The command line `muomni-fast`; needs the extra `cli`, and nothing here is imported without."""
