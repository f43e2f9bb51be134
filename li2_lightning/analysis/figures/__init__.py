"""Pictures beyond the report: what the nodes have learned."""
