"""The HTTP API: parse, call, render. docs/api.md has the routes."""
