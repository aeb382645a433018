"""Uploads half of a 256 MiB blob for a session that has memory, says so, waits to be killed."""
import socket, sys
host, port = sys.argv[1].split(":")
sock = socket.create_connection((host, int(port)))
HEAD = b"POST /batch HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n"
text = (b"[BufferAlloc(session=SessionKey(host='h', idx=0, nonce='doomed'), buffer_num=1, "
        b"size=268435456, options=BufferSpec())]")
body = bytes(32) + len(text).to_bytes(8, "little") + text
sock.sendall(HEAD % len(body) + body)
assert sock.recv(1 << 16).startswith(b"HTTP/1.1 200")
size = 256 << 20
sock.sendall(HEAD % (size + 4096))
sock.sendall(bytes(32) + size.to_bytes(8, "little"))
block = b"x" * (1 << 20)
for _ in range(size // len(block) // 2):
    sock.sendall(block)
print("half", flush=True)
sock.recv(1)
