"""Pure torch: never heard of Redis, HTTP, SQL or the object store."""
