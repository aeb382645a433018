"""Starts the client's own Python server on a loopback port that the kernel chooses.

tinygrad's start function listens on all interfaces; this one uses its parts with 127.0.0.1.
"""

import asyncio

from tinygrad.runtime.ops_remote import RemoteHandler


async def main():
    server = await asyncio.start_server(RemoteHandler("CPU"), host="127.0.0.1", port=0)
    port = server.sockets[0].getsockname()[1]
    print(f"reference: listening on 127.0.0.1:{port}", flush=True)
    await server.serve_forever()


asyncio.run(main())
