"""The nouns that client, server and worker share. Pure data: no network, no Redis, no SQL, no torch."""
