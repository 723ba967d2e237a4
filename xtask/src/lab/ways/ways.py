#!/usr/bin/python3
"""Servers and clients for what is not plain HTTP: web sockets, gRPC, Postgres.

ways ws PORT | grpc PORT | postgres PORT
ways ask-ws URL CA WORD | ask-grpc HOST:PORT CA WORD
ways hammer URL CA SECONDS    asks every 20 ms, each on a new connection
"""
import asyncio, os, ssl, subprocess, sys, time


def ws(port):
    import websockets

    async def echo(socket):
        async for word in socket:
            await socket.send("echo " + word)

    async def main():
        async with websockets.serve(echo, "0.0.0.0", int(port)):
            await asyncio.Future()

    asyncio.run(main())


def ask_ws(url, ca, word):
    import websockets

    async def main():
        tls = ssl.create_default_context(cafile=ca)
        async with websockets.connect(url, ssl=tls) as socket:
            for part in (word, word + "!"):
                await socket.send(part)
                print(await asyncio.wait_for(socket.recv(), 10))

    asyncio.run(main())


def grpc_server(port):
    import grpc
    from concurrent import futures

    def shout(request, context):
        return b"rpc " + request

    def count(request, context):
        for number in range(3):
            yield b"%d" % number

    handlers = {
        "Shout": grpc.unary_unary_rpc_method_handler(shout),
        "Count": grpc.unary_stream_rpc_method_handler(count),
    }
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("lab.Ways", handlers),))
    server.add_insecure_port("0.0.0.0:" + port)
    server.start()
    server.wait_for_termination()


def ask_grpc(target, ca, word):
    import grpc

    with open(ca, "rb") as file:
        credentials = grpc.ssl_channel_credentials(file.read())
    with grpc.secure_channel(target, credentials) as channel:
        print(channel.unary_unary("/lab.Ways/Shout")(word.encode(), timeout=10).decode())
        print(" ".join(part.decode() for part in channel.unary_stream("/lab.Ways/Count")(b"", timeout=10)))


def postgres(port):
    data, bin = "/tmp/pg", "/usr/lib/postgresql/15/bin/"
    as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    os.makedirs(data, exist_ok=True)
    subprocess.run(["chown", "postgres:postgres", data], check=True)
    if not os.path.exists(data + "/PG_VERSION"):
        subprocess.run(as_user + [bin + "initdb", "-D", data, "-A", "trust", "-N"], check=True)
        with open(data + "/pg_hba.conf", "a") as file:
            file.write("host all all all trust\n")
    os.execvp("setpriv", as_user + [bin + "postgres", "-D", data, "-h", "*", "-p", port, "-k", "/tmp", "-F"])


def hammer(url, ca, seconds):
    """Prints: requests, failures, the longest gap between two good answers in ms, and how it failed."""
    import http.client, threading, urllib.parse

    at = urllib.parse.urlsplit(url)
    tls = ssl.create_default_context(cafile=ca) if at.scheme == "https" else None
    good, bad, lock = [], {}, threading.Lock()

    def once():
        try:
            if tls:
                connection = http.client.HTTPSConnection(at.hostname, at.port, timeout=5, context=tls)
            else:
                connection = http.client.HTTPConnection(at.hostname, at.port, timeout=5)
            connection.request("GET", at.path or "/")
            status = connection.getresponse().status
            connection.close()
            why = None if status == 200 else str(status)
        except Exception as error:
            why = type(error).__name__
        with lock:
            if why is None:
                good.append(time.monotonic())
            else:
                bad[why] = bad.get(why, 0) + 1

    end, at_work = time.monotonic() + float(seconds), []
    print("hammering", flush=True)
    while time.monotonic() < end and not os.path.exists("/tmp/stop"):
        thread = threading.Thread(target=once)
        thread.start()
        at_work.append(thread)
        time.sleep(0.02)
    for thread in at_work:
        thread.join()
    good.sort()
    gap = max((b - a for a, b in zip(good, good[1:])), default=0)
    print(len(at_work), sum(bad.values()), round(gap * 1000), bad, flush=True)


if __name__ == "__main__":
    commands = {
        "ws": ws, "grpc": grpc_server, "postgres": postgres, "ask-ws": ask_ws, "ask-grpc": ask_grpc, "hammer": hammer,
    }
    commands[sys.argv[1]](*sys.argv[2:])
