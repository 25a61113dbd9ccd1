"""An S3-compatible server on this machine that can fail for a while."""

import threading
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from pyarrow.fs import FileSystem, FileType
from werkzeug.serving import make_server


class Server:
    """An S3 server on this machine. While it ``fails``, it answers every request with status 503."""

    def __init__(self) -> None:
        self.fails, self.refused = False, 0
        application = DomainDispatcherApplication(create_backend_app)

        def answer(environment: Any, start: Any) -> Any:
            if not self.fails:
                return application(environment, start)
            self.refused += 1
            start("503 Slow Down", [("Content-Length", "0")])
            return []

        self.server = make_server("127.0.0.1", 0, answer, threaded=True)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()
        self.system, path = FileSystem.from_uri(self.url("runs") + "&allow_bucket_creation=true")
        self.system.create_dir(path.partition("/")[0])

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()

    def has(self, name: str) -> bool:
        return bool(self.system.get_file_info(f"bucket/{name}").type != FileType.NotFound)

    def has_checkpoint(self) -> bool:
        return self.has("runs/run/checkpoint_manager_snapshot.json")

    def url(self, name: str) -> str:
        where = f"endpoint_override=127.0.0.1:{self.server.port}&scheme=http&region=us-east-1"
        return f"s3://key:secret@bucket/{name}?{where}"
