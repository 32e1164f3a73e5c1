"""A method, an encoder, a data source, a protocol and a policy for raysurl."""
