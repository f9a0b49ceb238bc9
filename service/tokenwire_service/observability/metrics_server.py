"""The Prometheus page: one daemon thread, apart from the event loop, so that a scrape never delays a token."""

from __future__ import annotations

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import start_http_server

from tokenwire_service.errors import StartupError


class MetricsServer:
    """Serves `registry` at http://hostname:port/metrics until closed. Raises StartupError when it cannot bind."""

    def __init__(self, registry: CollectorRegistry, hostname: str, port: int) -> None:
        try:
            self._server, self._thread = start_http_server(port, addr=hostname, registry=registry)
        except OSError as error:
            raise StartupError(
                f"metrics page cannot bind {hostname}:{port} ({error.strerror or error}); "
                "choose another --prometheus-port or --prometheus-hostname, or --prometheus-port 0 for none"
            ) from error
        self.port = int(self._server.server_port)

    def close(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
