"""One file a data set: the published configuration where there is one (paper table and released code)."""
