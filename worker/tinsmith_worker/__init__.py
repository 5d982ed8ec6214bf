"""The GPU room: takes jobs, computes, hands results back. Never heard of HTTP or SQL."""
