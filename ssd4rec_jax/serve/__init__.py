"""A trained model behind HTTP: batches of requests, users' new events, a page to try it."""
