"""The console: pages for people. It calls the rooms' own functions and holds no truth of its own."""
