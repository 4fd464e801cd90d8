"""A small shop: a web front takes orders, a worker charges each once, beat has a report made every night."""
