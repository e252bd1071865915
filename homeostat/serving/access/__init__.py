"""Who may reach the server, from where, how often, and to do what."""
