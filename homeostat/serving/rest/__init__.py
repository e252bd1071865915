"""The REST adapters: connections, the ASGI application, and what each protocol's bodies mean."""
