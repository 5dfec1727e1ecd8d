"""The protocol without I/O: messages in, actions out; no clock, thread, socket, asyncio or torch."""
