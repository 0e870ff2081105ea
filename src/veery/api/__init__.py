"""The HTTP API: parse requests, call the node's services, render answers. docs/api.md has the routes."""
