"""A server and its clients that push blocks of bytes over one carrier, by our link or by the bare library."""
