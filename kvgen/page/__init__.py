"""One offline page: a recording as a single HTML file to explore in a browser."""
