"""The gRPC adapters: the server, its listener, and what each protocol's messages mean."""
