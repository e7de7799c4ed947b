"""Room 6: the contract, and the request on the arena to Triton."""
