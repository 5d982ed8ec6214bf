"""The main job on a small real task, through the official SDK, with figures before and after."""
