"""Devices: meshes of them, the processes that have them, their memory and their compiled programs."""
