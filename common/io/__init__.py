"""Files, weights, the hub, and the process that the course runs in. Everything else in `common` may import this."""
