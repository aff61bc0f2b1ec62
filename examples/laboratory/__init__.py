"""Models of points in the plane, one a file, to be read beside each other and trained in seconds."""
