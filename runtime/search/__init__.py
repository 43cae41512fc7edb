"""Finding pictures and texts: folders become an index, an embedder recalls, a reranker orders, a sheet shows."""
