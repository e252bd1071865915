"""What runs the flows: the stack on one machine, the deployments, the story of `make run`."""
