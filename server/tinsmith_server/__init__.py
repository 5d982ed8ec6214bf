"""The HTTP room: accounts, objects, and jobs on their way to the queue. Never heard of torch."""
