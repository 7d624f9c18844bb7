"""A storage service on this machine that speaks enough of Google's JSON API and of S3's REST API.

The objects of both lie in one dictionary in memory. Who talks to it are the clients of others:
gcsfs, s3fs and TensorStore, whose requests decide what is served here.
"""

import contextlib
import email.utils
import hashlib
import http.server
import json
import re
import sys
import threading
import time
import urllib.parse
from xml.sax.saxutils import escape

_GCS_OBJECT = re.compile(r"/(?:download/)?storage/v1/b/([^/]+)/o/([^/]+)$")
_GCS_COPY = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/rewriteTo/b/([^/]+)/o/([^/]+)$")


class Objects:
    """The objects by (bucket, key), with a number that grows with every write."""

    def __init__(self):
        self.lock = threading.RLock()
        self.content: dict[tuple[str, str], tuple[bytes, int, float]] = {}
        self.uploads: dict[str, list] = {}
        self.number = 0

    def put(self, bucket, key, data, only_new=False):
        with self.lock:
            if only_new and (bucket, key) in self.content:
                return False
            self.number += 1
            self.content[bucket, key] = (bytes(data), self.number, time.time())
            return True

    def next_upload(self, value):
        with self.lock:
            self.number += 1
            self.uploads[str(self.number)] = value
            return str(self.number)

    def keys(self, bucket, prefix=""):
        with self.lock:
            return sorted(k for b, k in self.content if b == bucket and k.startswith(prefix))


def etag(data):
    return hashlib.md5(data).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    objects: Objects

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", kind="application/json", **headers):
        if isinstance(body, dict):
            body = json.dumps(body).encode()
        elif isinstance(body, str):
            body = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def read(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("x-amz-content-sha256", "").startswith("STREAMING"):
            data = _unchunked(data)
        return data

    def content(self, bucket, key, kind="application/octet-stream", **headers):
        """A whole object or the range that is asked for."""
        data, number, _ = self.objects.content[bucket, key]
        headers |= {"ETag": f'"{etag(data)}"', "x_goog_generation": number}
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            return self.answer(200, data, kind, **headers)
        first, last = asked.groups()
        start = int(first) if first else max(len(data) - int(last), 0)
        end = min(int(last) + 1, len(data)) if first and last else len(data)
        if start >= len(data) or start >= end:
            return self.answer(416, b"", kind)
        headers["Content_Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        return self.answer(206, data[start:end], kind, **headers)

    def serve(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        body = self.read()
        of_google = re.match(r"/(storage|upload|download|batch)/", url.path)
        if "forbidden" in url.path.split("/") and of_google:
            self.answer(403, {"error": {"code": 403, "message": "no rights"}})
        elif "forbidden" in url.path.split("/"):
            self.error(403, "AccessDenied")
        elif of_google:
            self.google(url.path, query, body)
        else:
            self.amazon(url.path, query, body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = serve  # noqa: N815

    # ------------------------------------------------------------ Google

    def google(self, path, query, body):
        if path == "/batch/storage/v1":
            return self.google_batch(body)
        if path.startswith("/upload/"):
            return self.google_upload(path.split("/")[5], query, body)
        if found := _GCS_COPY.match(path):
            bucket, key, to, name = map(urllib.parse.unquote, found.groups())
            self.objects.put(to, name, self.objects.content[bucket, key][0])
            return self.answer(200, {"done": True, "resource": self.described(to, name)})
        if found := _GCS_OBJECT.match(path):
            bucket, key = map(urllib.parse.unquote, found.groups())
            if (bucket, key) not in self.objects.content:
                return self.answer(404, {"error": {"code": 404, "message": "Not Found"}})
            if self.command == "DELETE":
                del self.objects.content[bucket, key]
                return self.answer(204)
            if query.get("alt") == "media":
                return self.content(bucket, key)
            return self.answer(200, self.described(bucket, key))
        bucket = path.split("/")[4]
        if path.endswith("/o"):
            return self.answer(200, self.google_list(bucket, query))
        return self.answer(200, {"kind": "storage#bucket", "name": bucket, "id": bucket})

    def described(self, bucket, key):
        data, number, when = self.objects.content[bucket, key]
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(when))
        return {
            "kind": "storage#object",
            "name": key,
            "bucket": bucket,
            "size": str(len(data)),
            "generation": str(number),
            "metageneration": "1",
            "etag": str(number),
            "updated": stamp,
            "timeCreated": stamp,
        }

    def google_list(self, bucket, query):
        keys = self.objects.keys(bucket, query.get("prefix", ""))
        keys = [k for k in keys if k >= query.get("startOffset", "")]
        keys = [k for k in keys if not query.get("endOffset") or k < query["endOffset"]]
        names, prefixes = _split(keys, query.get("prefix", ""), query.get("delimiter"))
        items = [self.described(bucket, k) for k in names]
        return {"kind": "storage#objects", "items": items, "prefixes": prefixes}

    def google_upload(self, bucket, query, body):
        if "upload_id" in query:
            upload = self.objects.uploads[query["upload_id"]]
            upload[2] += body
            asked = self.headers.get("Content-Range", "")
            if asked.endswith("/*") or not asked:
                return self.answer(308, b"", Range=f"bytes=0-{len(upload[2]) - 1}")
            bucket, key, data, only_new = upload
        elif query.get("uploadType") == "resumable":
            key = json.loads(body)["name"]
            only_new = query.get("ifGenerationMatch") == "0"
            upload = self.objects.next_upload([bucket, key, b"", only_new])
            host = self.headers["Host"]
            place = f"http://{host}{self.path}&upload_id={upload}"
            return self.answer(200, b"", Location=place)
        elif query.get("uploadType") == "multipart":
            boundary = re.search(r'boundary="?=*([^";]+)', self.headers["Content-Type"])[1]
            _, first, second, _ = re.split(rb"\r?\n?--=*" + boundary.encode() + rb"=*(?:--)?", body)
            key = json.loads(first.split(b"\n\n" if b"\r" not in first else b"\r\n\r\n", 1)[1])
            key = key["name"]
            data = second.split(b"\n\n" if b"\r\n\r\n" not in second else b"\r\n\r\n", 1)[1]
            only_new = query.get("ifGenerationMatch") == "0"
        else:
            key, data, only_new = query["name"], body, query.get("ifGenerationMatch") == "0"
        if not self.objects.put(bucket, key, data, only_new):
            return self.answer(412, {"error": {"code": 412, "message": "Precondition Failed"}})
        return self.answer(200, self.described(bucket, key))

    def google_batch(self, body):
        lines = re.findall(rb"DELETE (/\S+)", body)
        parts = []
        for line in lines:
            path = urllib.parse.urlsplit(line.decode()).path
            bucket, key = map(urllib.parse.unquote, _GCS_OBJECT.match(path).groups())
            gone = self.objects.content.pop((bucket, key), None)
            status = "204 No Content" if gone else "404 Not Found"
            parts.append(
                f"--b\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 {status}\r\n"
                "Content-Length: 0\r\n\r\n\r\n"
            )
        self.answer(200, "".join(parts) + "--b--", "multipart/mixed; boundary=b")

    # ------------------------------------------------------------ Amazon

    def amazon(self, path, query, body):
        bucket, _, key = urllib.parse.unquote(path).lstrip("/").partition("/")
        if not key:
            return self.amazon_bucket(bucket, query, body)
        if "uploads" in query:
            upload = self.objects.next_upload({})
            return self.xml(
                f"<InitiateMultipartUploadResult><Bucket>{bucket}</Bucket><Key>{escape(key)}</Key>"
                f"<UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
            )
        if "partNumber" in query:
            self.objects.uploads[query["uploadId"]][int(query["partNumber"])] = body
            return self.answer(200, b"", ETag=f'"{etag(body)}"')
        if "uploadId" in query:
            parts = self.objects.uploads.pop(query["uploadId"])
            self.objects.put(bucket, key, b"".join(parts[n] for n in sorted(parts)))
            return self.xml(
                "<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>"
            )
        if self.command == "PUT":
            if source := self.headers.get("x-amz-copy-source"):
                other, _, name = urllib.parse.unquote(source).lstrip("/").partition("/")
                body = self.objects.content[other, name][0]
            if not self.objects.put(bucket, key, body, self.headers.get("If-None-Match") == "*"):
                return self.error(412, "PreconditionFailed")
            if source:
                return self.xml(f"<CopyObjectResult><ETag>{etag(body)}</ETag></CopyObjectResult>")
            return self.answer(200, b"", ETag=f'"{etag(body)}"')
        if self.command == "DELETE":
            self.objects.content.pop((bucket, key), None)
            return self.answer(204)
        if (bucket, key) not in self.objects.content:
            return self.error(404, "NoSuchKey")
        data, _, when = self.objects.content[bucket, key]
        modified = email.utils.formatdate(when, usegmt=True)
        if self.command == "HEAD":
            headers = {"Content_Length": len(data), "ETag": f'"{etag(data)}"'}
            return self.answer(200, b"", Last_Modified=modified, **headers)
        return self.content(bucket, key, Last_Modified=modified)

    def amazon_bucket(self, bucket, query, body):
        if "delete" in query:
            gone = [k.decode() for k in re.findall(rb"<Key>([^<]*)</Key>", body)]
            for key in gone:
                self.objects.content.pop((bucket, key), None)
            deleted = "".join(f"<Deleted><Key>{escape(k)}</Key></Deleted>" for k in gone)
            return self.xml(f"<DeleteResult>{deleted}</DeleteResult>")
        if self.command == "HEAD":
            return self.answer(200)
        prefix = query.get("prefix", "")
        keys = self.objects.keys(bucket, prefix)
        names, prefixes = _split(keys, prefix, query.get("delimiter"))
        rows = []
        for key in names:
            data, _, when = self.objects.content[bucket, key]
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(when))
            rows.append(
                f"<Contents><Key>{escape(key)}</Key><LastModified>{stamp}</LastModified>"
                f'<ETag>"{etag(data)}"</ETag><Size>{len(data)}</Size>'
                "<StorageClass>STANDARD</StorageClass></Contents>"
            )
        rows += [f"<CommonPrefixes><Prefix>{escape(p)}</Prefix></CommonPrefixes>" for p in prefixes]
        return self.xml(
            f"<ListBucketResult><Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix>"
            f"<KeyCount>{len(rows)}</KeyCount><MaxKeys>1000</MaxKeys>"
            f"<IsTruncated>false</IsTruncated>{''.join(rows)}</ListBucketResult>"
        )

    def xml(self, text, status=200):
        self.answer(status, f'<?xml version="1.0" encoding="UTF-8"?>\n{text}', "application/xml")

    def error(self, status, code):
        self.xml(f"<Error><Code>{code}</Code><Message>{code}</Message></Error>", status)


def _split(keys, prefix, delimiter):
    """Keys directly below the prefix, and the prefixes of the others."""
    if not delimiter:
        return keys, []
    names, prefixes = [], set()
    for key in keys:
        head, found, _ = key[len(prefix) :].partition(delimiter)
        if found:
            prefixes.add(prefix + head + delimiter)
        else:
            names.append(key)
    return names, sorted(prefixes)


def _unchunked(data):
    """The content of a body in S3's `aws-chunked` encoding."""
    out = b""
    while data:
        head, _, data = data.partition(b"\r\n")
        size = int(head.split(b";")[0], 16)
        if not size:
            break
        out, data = out + data[:size], data[size + 2 :]
    return out


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):  # a client has gone
            super().handle_error(request, client_address)


@contextlib.contextmanager
def serving():
    """Yields the address of a running server, and its objects."""
    objects = Objects()
    handler = type("OneHandler", (Handler,), {"objects": objects})
    server = _Server(("localhost", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://localhost:{server.server_port}", objects
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def environment(address):
    """What the clients of both services have to find in the environment."""
    return {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "anybody",
        "NO_GCE_CHECK": "true",  # else Google's clients ask a machine that only their cloud has
        "GCE_METADATA_HOST": address.removeprefix("http://"),
        "GCE_METADATA_IP": address.removeprefix("http://"),
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "anybody",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
