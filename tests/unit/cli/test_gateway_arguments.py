"""What the gateway is told on its command line."""

from tokenwire_service.config import FrontendConfig
from tokenwire_service.launch import Gateway, GatewayConfig, gateway_arguments


def test_the_defaults() -> None:
    assert gateway_arguments(GatewayConfig(), FrontendConfig(), 50051) == [
        "--target=127.0.0.1:50051",
        "--hostname=0.0.0.0",
        "--port=8080",
        "--max-client-batch-size=32",
        "--graceful-termination-timeout=90",
        "--log-level=info",
        "--otlp-service-name=tokenwire-gateway",
    ]


def test_what_the_frontend_says_is_passed_on() -> None:
    frontend = FrontendConfig(
        hostname="::1",
        json_output=True,
        otlp_endpoint="http://c:4317",
        max_message_bytes=1000,
        tls_cert_path="/cert.pem",
        tls_key_path="/key.pem",
    )
    arguments = gateway_arguments(GatewayConfig(cors_allow_origin=("https://a",)), frontend, 1234)
    assert "--target=[::1]:1234" in arguments
    for expected in (
        "--cors-allow-origin=https://a",
        "--payload-limit=1000",
        "--json-output",
        "--otlp-endpoint=http://c:4317",
        "--tls",
        "--tls-ca-path=/cert.pem",
    ):
        assert expected in arguments


def test_the_key_travels_in_the_environment_and_not_on_the_command_line() -> None:
    frontend = FrontendConfig(api_key="secret")
    gateway = Gateway(GatewayConfig(), frontend, {"API_KEY": "old", "TOKENWIRE_TLS": "1", "PATH": "/bin"})
    assert "secret" not in str(gateway_arguments(GatewayConfig(), frontend, 1))
    assert gateway._environ == {"PATH": "/bin", "API_KEY": "secret"}
