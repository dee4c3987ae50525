"""A server that finds objects in images over HTTP, with a page: `app` has its routes, `run` starts it."""
